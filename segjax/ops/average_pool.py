"""Averages over windows, of one size or adaptive: a product with one matrix per axis."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from segjax.ops.geometry import output_size, per_axis
from segjax.ops.pool import pool_pads
from segjax.ops.separable import apply_matrices
from segjax.types import Array, HostArray


def avg_pool(
    x: Array,
    window: int | Sequence[int],
    *,
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array:
    """Averages each window: its sum over a count, the product of one count per axis.

    The window that starts at pixel a = s i - p of an axis of n pixels counts min(a + k, n + p) - a there, zeros of the
    padding included, or only its pixels, min(a + k, n) - max(a, 0). So where `ceil_mode` lets a window stick out of the
    padded image, what sticks out never counts.

    Without padding, and stride = window = f, f^2 times this is the exact adjoint of `nearest_unpool` by f.

    Args:
        x: [B, H, W, C], floating.
        window: pixels per axis.
        stride: pixels between windows; None is the window.
        padding: zeros on both sides of an axis, at most half the window.
        ceil_mode: round the output size up, as long as each window starts inside the image or its low padding.
        count_include_pad: count zeros of the padding.

    Returns:
        [B, H', W', C] of x's dtype, summed in float32 (float64 for float64). Differentiable in reverse mode, twice too.

    Raises:
        ValueError: a geometry argument out of range, an image without pixels, a window larger than the padded image, or
            x is not floating.

    Source:
        torch.nn.functional.avg_pool2d.
    """
    _check_image("avg_pool", x)
    window = per_axis("window", window, 2)
    stride = window if stride is None else per_axis("stride", stride, 2)
    padding = per_axis("padding", padding, 2, minimum=0)
    size, ones = x.shape[1:3], (1, 1)
    pads = pool_pads(size, window, stride, padding, ones, ceil_mode)
    counts = output_size(size, window, stride, pads, ones)
    axes = zip(size, window, stride, padding, counts, strict=True)
    return apply_matrices(x, *(_average_matrix(*axis, count_include_pad) for axis in axes))


def adaptive_avg_pool(x: Array, size: int | Sequence[int]) -> Array:
    """Averages windows [floor(i n / m), ceil((i + 1) n / m)) of each axis, n input and m output pixels; m may exceed n.

    Args:
        x: [B, H, W, C], floating.
        size: output pixels per axis; 1 is the global average.

    Returns:
        [B, *size, C] of x's dtype.

    Raises:
        ValueError: a size below 1, x without pixels, or x is not floating.

    Source:
        torch.nn.functional.adaptive_avg_pool2d.
    """
    _check_image("adaptive_avg_pool", x)
    size = per_axis("size", size, 2)
    if size == (1, 1):
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.mean(x, axis=(1, 2), keepdims=True, dtype=wide).astype(x.dtype)
    return apply_matrices(x, *(_adaptive_matrix(m, n) for m, n in zip(size, x.shape[1:3], strict=True)))


def adaptive_bins(out_size: int, in_size: int) -> list[tuple[int, int]]:
    """Divides an axis into bins [floor(i n / m), ceil((i + 1) n / m)).

    Neighbours share a pixel where m does not divide n; m may exceed n.

    Args:
        out_size: m bins.
        in_size: n pixels, at least 1.

    Returns:
        (first, past the last) pixel of each bin.
    """
    return [(i * in_size // out_size, -(-(i + 1) * in_size // out_size)) for i in range(out_size)]


def _check_image(name: str, x: Array) -> None:
    if x.ndim != 4 or 0 in x.shape[1:3]:
        raise ValueError(f"{name} of shape {x.shape}: expected [B, H, W, C] with pixels")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} of dtype {x.dtype}: expected a floating dtype")


def _adaptive_matrix(out_size: int, in_size: int) -> HostArray:
    matrix = np.zeros((out_size, in_size))
    for row, (first, end) in zip(matrix, adaptive_bins(out_size, in_size), strict=True):
        row[first:end] = 1 / (end - first)
    return matrix


def _average_matrix(n: int, k: int, s: int, p: int, count: int, include_pad: bool) -> HostArray:
    matrix = np.zeros((count, n))
    for i, row in enumerate(matrix):
        first = s * i - p
        inside = slice(max(first, 0), min(first + k, n))
        row[inside] = 1 / (min(first + k, n + p) - first if include_pad else inside.stop - inside.start)
    return matrix
