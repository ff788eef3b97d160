"""Max-pooling, and where the maxima lie.

The gradient of a maximum goes to one pixel of its window, so all that it needs is the number of the winning tap: a byte
per output, found in one pass over the taps. On a CPU value, winner and gradient are elementwise passes over strided
slices. Taps in the padding read a pixel of their own window again, which changes no maximum: XLA's vector code stops at
the bounds checks of a padded copy. Float32, two cores, 3x3 taps at stride 2 on 4x120x160x64: `reduce_window` 5.6 ms,
slices of a padded copy 2.3, here 0.6; the gradient by select-and-scatter 88 ms, here 1.5.
"""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops.geometry import Geometry, image_geometry, interleave, per_axis, phases
from segjax.types import Array, HostArray

_MOST_TAPS = 64  # above it XLA's own forms are about as fast, and the passes take seconds to compile
_NO_TAP = 255


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

    The gradient of a maximum goes to the pixel that won. It is defined in reverse mode, any number of times.

    Args:
        x: [B, H, W, C], integer or floating. A NaN makes the maximum of its windows NaN, which any pixel of the window
            may win.
        window: taps per axis.
        stride: pixels between windows; None is the window.
        padding: pixels on both sides of an axis, at most half the window.
        dilation: pixels between taps.
        ceil_mode: round the output size up, as long as each window starts inside the image or its low padding.
        return_indices: also return where each maximum lies.

    Returns:
        [B, H', W', C] of x's dtype; with `return_indices` also i32[B, H', W', C], y W + x in the unpadded plane.

    Raises:
        ValueError: a geometry argument out of range, an image without pixels, a window larger than the padded image, or
            x is neither integer nor floating.

    Source:
        torch.nn.functional.max_pool2d, whose rules for ties, padding and `ceil_mode` these are.
    """
    if x.ndim != 4 or 0 in x.shape[1:3]:
        raise ValueError(f"max_pool of shape {x.shape}: expected [B, H, W, C] with pixels")
    check_ordered("max_pool", x)
    window = per_axis("window", window, 2)
    stride = window if stride is None else per_axis("stride", stride, 2)
    dilation = per_axis("dilation", dilation, 2)
    pads = pool_pads(x.shape[1:3], window, stride, padding, dilation, ceil_mode)
    geometry = image_geometry(x.shape[1:3], window, stride, pads, dilation, groups=1)
    y = _maximum(x, geometry)
    if not return_indices:
        return y
    return y, _place(_winner(jax.lax.stop_gradient(x), geometry), geometry)


def check_ordered(name: str, x: Array) -> None:
    """Checks that pixels are numbers of which one is the largest.

    Args:
        name: the operation's name, for the message.
        x: of any shape.

    Raises:
        ValueError: they are neither integer nor floating.
    """
    if not (jnp.issubdtype(x.dtype, jnp.integer) or jnp.issubdtype(x.dtype, jnp.floating)):
        raise ValueError(f"{name} of dtype {x.dtype}: expected an integer or floating dtype")


def pool_pads(
    size: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    padding: int | Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[tuple[int, int], ...]:
    """Reads a pool's padding; `ceil_mode` is nothing but more of it at the high end.

    Args:
        size: input pixels per axis.
        window: taps per axis.
        stride: pixels per axis between windows.
        padding: as in `max_pool`.
        dilation: pixels per axis between taps.
        ceil_mode: as in `max_pool`.

    Returns:
        (low, high) pixels per axis.

    Raises:
        ValueError: padding below 0 or above half the window.
    """
    padding = per_axis("padding", padding, len(size), minimum=0)
    if any(2 * p > k for p, k in zip(padding, window, strict=True)):
        most = tuple(min(p, k // 2) for p, k in zip(padding, window, strict=True))
        raise ValueError(f"padding={padding}: expected at most half of window={tuple(window)}, such as {most}")
    pads = []
    for n, k, s, p, d in zip(size, window, stride, padding, dilation, strict=True):
        span, high = d * (k - 1) + 1, p
        if ceil_mode:
            windows = -(-(n + 2 * p - span) // s) + 1
            if (windows - 1) * s >= n + p:
                windows -= 1
            high = max(p, (windows - 1) * s + span - n - p)
        pads.append((p, high))
    return tuple(pads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _maximum(x, geometry):
    plain = functools.partial(_reduce_window, geometry=geometry)
    if _number_of_taps(geometry) > _MOST_TAPS:
        return plain(x)
    return jax.lax.platform_dependent(x, cpu=functools.partial(_tap_maximum, geometry=geometry), default=plain)


def _maximum_forward(x, geometry):
    return _maximum(x, geometry), (x, _winner(x, geometry))


def _maximum_backward(geometry, saved, g):
    """Of the input and the winners only one is used, and the other is dead code under jit."""

    def plain(x: Array, winner: Array, g: Array) -> Array:
        return jax.vjp(functools.partial(_reduce_window, geometry=geometry), x)[1](g)[0]

    def by_winner(x: Array, winner: Array, g: Array) -> Array:
        return _send(winner, g, geometry)

    if max(geometry.dilation) > 1:  # XLA has no gradient of a dilated window
        return (by_winner(*saved, g),)
    if _number_of_taps(geometry) > _MOST_TAPS:
        return (plain(*saved, g),)
    return (jax.lax.platform_dependent(*saved, g, cpu=by_winner, default=plain),)


_maximum.defvjp(_maximum_forward, _maximum_backward)


def _reduce_window(x, geometry):
    return jax.lax.reduce_window(
        x,
        _lowest(x.dtype),
        jax.lax.max,
        (1, *geometry.window, 1),
        (1, *geometry.stride, 1),
        ((0, 0), *geometry.pads, (0, 0)),
        window_dilation=(1, *geometry.dilation, 1),
    )


def _lowest(dtype: np.dtype) -> np.generic:
    """What a maximum starts from: a constant, since XLA knows the gradient of no other initial value."""
    return np.array(-np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min, dtype)


def _number_of_taps(geometry):
    return geometry.window[0] * geometry.window[1]


def _reads(geometry: Geometry, axis: int) -> tuple[HostArray, HostArray, HostArray]:
    """Pixel that each tap of each window reads, [taps, windows], its window's nearest where it lies in the padding;

    each window's first tap inside the image, [windows]; and which windows have none (dilation steps over the image).
    """
    n, k, s, d = (values[axis] for values in (geometry.input, geometry.window, geometry.stride, geometry.dilation))
    start = s * np.arange(geometry.output[axis]) - geometry.pads[axis][0]
    first, last = np.maximum(-(start // d), 0), np.minimum((n - 1 - start) // d, k - 1)
    pixel = start + d * np.clip(np.arange(k)[:, None], first, last)
    return np.clip(pixel, 0, n - 1), first, first > last


def _empty(geometry: Geometry) -> HostArray:
    """Windows without a pixel, bool[1, H', W', 1]."""
    rows, columns = (_reads(geometry, axis)[2] for axis in (0, 1))
    return (rows[:, None] | columns[None, :])[None, :, :, None]


def _pick(x: Array, index: HostArray, axis: int) -> Array:
    """Takes pixels of an axis: a slice where they are evenly spaced."""
    steps = set(np.diff(index).tolist()) or {1}
    if len(steps) == 1 and min(steps) > 0:
        return jax.lax.slice_in_dim(x, int(index[0]), int(index[-1]) + 1, steps.pop(), axis)
    return jnp.take(x, index, axis=axis, mode="clip", indices_are_sorted=True)


def _values(x: Array, geometry: Geometry) -> Iterator[Array]:
    """Yields, per tap in row order, its value in every window."""
    for row in _reads(geometry, 0)[0]:
        line = _pick(x, row, 1)
        for column in _reads(geometry, 1)[0]:
            yield _pick(line, column, 2)


def _tap_maximum(x, geometry):
    y = functools.reduce(jnp.maximum, _values(x, geometry))
    empty = _empty(geometry)
    return jnp.where(empty, _lowest(x.dtype), y) if empty.any() else y


@functools.partial(jax.jit, static_argnames="geometry")
def _winner(x, geometry):
    """Number of the tap with the maximum, u kw + v: u8[B, H', W', C], or i32 where there are 255 taps or more."""
    # Apart from the maximum's own pass: XLA would write out every shared slice rather than read x twice (7 ms for 2).
    x = jax.lax.optimization_barrier(x)
    dtype = np.uint8 if _number_of_taps(geometry) < _NO_TAP else np.int32
    values = _values(x, geometry)
    best = next(values)
    winner = jnp.zeros(best.shape, dtype)
    for number, value in enumerate(values, start=1):
        take = ~(value <= best)
        best, winner = jnp.where(take, value, best), jnp.where(take, dtype(number), winner)
    if (empty := _empty(geometry)).any():
        winner = jnp.where(empty, dtype(0), winner)
    first_rows, first_columns = (_reads(geometry, axis)[1].astype(dtype) for axis in (0, 1))
    if first_rows.any() or first_columns.any():
        # A tap before the image read what the first one inside reads, and came earlier: the win is that one's.
        width = dtype(geometry.window[1])
        row = jnp.maximum(winner // width, first_rows[None, :, None, None])
        winner = row * width + jnp.maximum(winner % width, first_columns[None, None, :, None])
    return winner


@functools.partial(jax.jit, static_argnames="geometry")
def _place(winner, geometry):
    """Flat index of the winning tap's pixel."""
    winner = jax.lax.optimization_barrier(winner)  # or it is found twice, for the row and for the column
    width = np.array(geometry.window[1], winner.dtype)
    row, column = (
        jnp.expand_dims(s * np.arange(m, dtype=np.int32) - low, axes) + d * tap.astype(jnp.int32)
        for tap, s, m, (low, _), d, axes in zip(
            (winner // width, winner % width),
            geometry.stride,
            geometry.output,
            geometry.pads,
            geometry.dilation,
            ((0, 2, 3), (0, 1, 3)),
            strict=True,
        )
    )
    return row * geometry.input[1] + column


@functools.partial(jax.jit, static_argnames="geometry")
def _send(winner, g, geometry):
    """Sends g to the winners: a pixel sums the g of those windows that read it through the tap that won."""
    pairs_of_phase = list(phases(geometry.window, geometry.stride, geometry.pads, geometry.dilation))
    quotient = tuple(-(-n // s) for n, s in zip(geometry.input, geometry.stride, strict=True))
    offsets = zip(*(offset for pairs in pairs_of_phase for _, offset in pairs), strict=True)
    edges = [
        (max(0, -min(o)), max(0, max(o) + q - m)) for o, q, m in zip(offsets, quotient, geometry.output, strict=True)
    ]
    # A byte each, so that g needs no padding: where there is no window, no tap won.
    winner = jnp.pad(winner, ((0, 0), *edges, (0, 0)), constant_values=_NO_TAP if winner.dtype == np.uint8 else -1)
    winner = jax.lax.optimization_barrier(winner)

    def sent(tap: tuple[int, ...], offset: tuple[int, ...]) -> Array:
        """What pixels s q + p of one phase receive from windows q + offset, in which they are tap."""
        index = [np.arange(q) + o for q, o in zip(quotient, offset, strict=True)]
        value = g
        for axis, (i, m) in enumerate(zip(index, geometry.output, strict=True)):
            value = _pick(value, np.clip(i, 0, m - 1), axis + 1)
        rows, columns = (slice(i[0] + low, i[-1] + low + 1) for i, (low, _) in zip(index, edges, strict=True))
        number = np.array(tap[0] * geometry.window[1] + tap[1], winner.dtype)
        return jnp.where(winner[:, rows, columns] == number, value, 0)

    nothing = jnp.zeros((g.shape[0], *quotient, g.shape[3]), g.dtype)
    parts = [functools.reduce(jnp.add, [sent(*pair) for pair in pairs] or [nothing]) for pairs in pairs_of_phase]
    return interleave(parts, geometry.stride, (g.shape[0], *geometry.input, g.shape[3]))
