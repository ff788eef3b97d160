"""Pooling: maxima with their places, and averages over adaptive windows."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops.geometry import interleave, output_size, per_axis, phases
from segjax.ops.resize import apply_matrices
from segjax.types import Array, HostArray


def max_pool(
    x: Array,
    window: int | Sequence[int],
    *,
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Array | tuple[Array, Array]:
    """Takes the maximum of each window; padding never wins, and among ties the first in row order does.

    Args:
        x: [B, H, W, C], real.
        window: taps per axis.
        stride: pixels between windows; None is the window.
        padding: pixels on both sides of an axis, at most half the window.
        dilation: pixels between taps.
        ceil_mode: round the output size up, as long as each window starts inside the image or its low padding.
        return_indices: also return where each maximum lies.

    Returns:
        [B, H', W', C] of x's dtype; with `return_indices` also i32[B, H', W', C], y W + x in the unpadded plane.

    Raises:
        ValueError: a geometry argument out of range, or a window larger than the padded image.

    Source:
        torch.nn.functional.max_pool2d, whose rules for ties, padding and `ceil_mode` these are.
    """
    if x.ndim != 4:
        raise ValueError(f"max_pool of shape {x.shape}: expected [B, H, W, C]")
    window = per_axis("window", window, 2)
    stride = window if stride is None else per_axis("stride", stride, 2)
    padding, dilation = per_axis("padding", padding, 2, minimum=0), per_axis("dilation", dilation, 2)
    if any(2 * p > k for p, k in zip(padding, window, strict=True)):
        raise ValueError(f"padding={padding}: expected at most half of window={window}")
    pads = _pool_pads(x.shape[1:3], window, stride, padding, dilation, ceil_mode)
    if return_indices:
        return _max_and_index(x, window, stride, pads, dilation)
    return _max(x, window, stride, pads, dilation)


def adaptive_avg_pool(x: Array, size: int | Sequence[int]) -> Array:
    """Averages windows [floor(i n / m), ceil((i + 1) n / m)) of each axis, n input and m output pixels; m may exceed n.

    Args:
        x: [B, H, W, C], floating.
        size: output pixels per axis; 1 is the global average.

    Returns:
        [B, *size, C] of x's dtype.

    Raises:
        ValueError: a size below 1, or x without pixels.

    Source:
        torch.nn.functional.adaptive_avg_pool2d.
    """
    size = per_axis("size", size, 2)
    if x.ndim != 4 or 0 in x.shape[1:3]:
        raise ValueError(f"adaptive_avg_pool of shape {x.shape}: expected [B, H, W, C] with pixels")
    if size == (1, 1):
        return jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
    return apply_matrices(x, *(_window_matrix(m, n) for m, n in zip(size, x.shape[1:3], strict=True)))


def _window_matrix(out_size: int, in_size: int) -> HostArray:
    i, j = np.arange(out_size)[:, None], np.arange(in_size)[None, :]
    inside = (j >= i * in_size // out_size) & (j < -(-(i + 1) * in_size // out_size))
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)


def _pool_pads(size, window, stride, padding, dilation, ceil_mode) -> tuple[tuple[int, int], ...]:
    """(low, high) per axis; `ceil_mode` is nothing but more padding at the high end."""
    pads = []
    for n, k, s, p, d in zip(size, window, stride, padding, dilation, strict=True):
        span, high = d * (k - 1) + 1, p
        if ceil_mode:
            windows = max(-(-(n + 2 * p - span) // s) + 1, 1)
            if (windows - 1) * s >= n + p:
                windows -= 1
            high = max(p, (windows - 1) * s + span - n - p)
        pads.append((p, high))
    return tuple(pads)


def _lowest(dtype: np.dtype) -> np.generic:
    """What the maximum starts from: a constant, since XLA knows the gradient of no other initial value."""
    return np.array(-np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min, dtype)


def _taps(x, window, stride, pads, dilation):
    """Yields, per tap in row order, (row, column) of the tap and its value in every window."""
    out = output_size(x.shape[1:3], window, stride, pads, dilation)
    padded = jax.lax.pad(x, _lowest(x.dtype), ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)))
    for u in range(window[0]):
        for v in range(window[1]):
            start = (0, u * dilation[0], v * dilation[1], 0)
            ends = (a + (m - 1) * s + 1 for a, m, s in zip(start[1:3], out, stride, strict=True))
            limit = (x.shape[0], *ends, x.shape[3])
            yield (u, v), jax.lax.slice(padded, start, limit, (1, *stride, 1))


def _max_and_index(x, window, stride, pads, dilation):
    """Maximum and flat index in the unpadded plane: a running comparison over the taps."""
    best, index = None, None
    for (u, v), value in _taps(x, window, stride, pads, dilation):
        row = jnp.arange(value.shape[1], dtype=jnp.int32) * stride[0] + (u * dilation[0] - pads[0][0])
        column = jnp.arange(value.shape[2], dtype=jnp.int32) * stride[1] + (v * dilation[1] - pads[1][0])
        place = jnp.broadcast_to((row[:, None] * x.shape[2] + column[None, :])[None, :, :, None], value.shape)
        inside = ((row >= 0) & (row < x.shape[1]))[:, None] & ((column >= 0) & (column < x.shape[2]))[None, :]
        if best is None:
            best, index, found = value, place, jnp.broadcast_to(inside[None, :, :, None], value.shape)
            continue
        # `found` lets an image of -inf alone still name a pixel of its own, never one of the padding.
        take = inside[None, :, :, None] & ((value > best) | ~found)
        best, index, found = (
            jnp.where(take, value, best),
            jnp.where(take, place, index),
            found | inside[None, :, :, None],
        )
    return best, index


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max(x, window, stride, pads, dilation):
    output_size(x.shape[1:3], window, stride, pads, dilation)  # for its error
    if max(dilation) > 1:  # XLA has no gradient of a dilated window
        return _max_and_index(x, window, stride, pads, dilation)[0]
    return jax.lax.reduce_window(
        x, _lowest(x.dtype), jax.lax.max, (1, *window, 1), (1, *stride, 1), ((0, 0), *pads, (0, 0))
    )


def _max_forward(x, window, stride, pads, dilation):
    y = _max(x, window, stride, pads, dilation)
    return y, (x, y)


def _max_backward(window, stride, pads, dilation, saved, g):
    """On a CPU XLA's select-and-scatter took 27 ms for 4x96x128x64 (3x3, stride 2), the sum over taps 2.3 ms.

    A window of many taps is left to XLA: the sum would compile to a program of their number squared.
    """
    geometry = (window, stride, pads, dilation)

    def plain(x: Array, y: Array, g: Array) -> Array:
        return jax.vjp(lambda x: _max.fun(x, *geometry), x)[1](g)[0]

    if window[0] * window[1] > 16:
        return (plain(*saved, g),)
    return (jax.lax.platform_dependent(*saved, g, cpu=functools.partial(_tap_gradient, *geometry), default=plain),)


_max.defvjp(_max_forward, _max_backward)


def _tap_gradient(window, stride, pads, dilation, x, y, g):
    """Sends g to the first tap that equals the maximum: each pixel sums what the windows that read it send."""
    number = {tap: n for n, (tap, _) in enumerate(_taps(x, window, stride, pads, dilation))}
    first = jnp.full(y.shape, -1, jnp.int32)
    for tap, value in reversed(list(_taps(x, window, stride, pads, dilation))):
        first = jnp.where(value == y, number[tap], first)
    quotient = tuple(-(-n // s) for n, s in zip(x.shape[1:3], stride, strict=True))
    pairs_of_phase = list(phases(window, stride, pads, dilation))
    offsets = [offset for pairs in pairs_of_phase for _, offset in pairs]
    low, high = zip(
        *(
            (max(0, -min(o)), max(0, max(o) + q - m))
            for o, q, m in zip(zip(*offsets, strict=True), quotient, y.shape[1:3], strict=True)
        ),
        strict=True,
    )
    edges = ((0, 0), *zip(low, high, strict=True), (0, 0))
    first, g = jnp.pad(first, edges, constant_values=-1), jnp.pad(g, edges)
    parts = []
    for pairs in pairs_of_phase:
        part = jnp.zeros((x.shape[0], *quotient, x.shape[3]), g.dtype)
        for tap, offset in pairs:
            a, b = (o + edge for o, edge in zip(offset, low, strict=True))
            there = (slice(None), slice(a, a + quotient[0]), slice(b, b + quotient[1]))
            part += jnp.where(first[there] == number[tap], g[there], 0)
        parts.append(part)
    return interleave(parts, stride, x.shape)
