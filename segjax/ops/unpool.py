"""Unpooling: three ways to put a small image's values into a larger one, each next to the pooling it goes back through.

    unpooling       writes                                  is the exact adjoint of
    max_unpool      each value at its index                 max-pooling with those indices, where no windows overlap
    bed_of_nails    each value at its cell's top left       taking every f-th pixel, x[:, ::f, ::f]
    nearest_unpool  each value all over its cell            summing cells, f^2 avg_pool(x, f)

A linear map A has one adjoint A*, with <A x, y> = <x, A* y> for all x and y: its matrix transposed. Max-pooling is not
linear, but with its indices held it is: it reads one pixel per window.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops.geometry import per_axis
from segjax.ops.separable import select_pixels
from segjax.types import Array


def max_unpool(y: Array, indices: Array, size: int | Sequence[int]) -> Array:
    """Writes each value at its index into an image of zeros: x[b, indices[b, i, j, c], c] = y[b, i, j, c].

    It writes where `max_pool` read, so it is the exact adjoint of max-pooling with these indices as long as no index
    repeats, as when no windows overlap. Where one repeats, one of its values is written, which one is not defined; the
    adjoint would add them up. The gradient of y is read at its index, also that of values that others wrote over
    (as PyTorch has it). An index outside [0, H W) is dropped: its value is written nowhere and its gradient is zero.

    Args:
        y: [B, H', W', C], any dtype.
        indices: integers of y's shape, row W + column in the image, such as `max_pool(..., return_indices=True)` gives.
        size: (H, W) of the image; any for which the indices are meant, odd sizes and pixels of no window too.

    Returns:
        [B, H, W, C] of y's dtype. Differentiable in reverse mode, twice too.

    Raises:
        ValueError: shapes that differ, indices that are no integers, or a size that no max-pooling brings to y's: it
            adds at most one pixel to an axis.

    On a CPU a pass over the image replaces the scatter wherever a division of the image into equal cells, one for each
    value, finds each index in its own cell (about 3 times faster).

    Source:
        Badrinarayanan, Kendall & Cipolla 2017, SegNet, section 3, https://arxiv.org/abs/1511.00561;
        torch.nn.functional.max_unpool2d.
    """
    if y.ndim != 4 or y.shape != indices.shape:
        raise ValueError(f"y {y.shape} and indices {indices.shape}: expected [B, H', W', C] of one shape")
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(f"indices of {indices.dtype}: expected integers, row * W + column")
    size = per_axis("size", size, 2)
    least = tuple(max(m - 1, 1) for m in y.shape[1:3])
    if any(n < m for n, m in zip(size, least, strict=True)):
        nearest = tuple(map(max, zip(size, least, strict=True)))
        raise ValueError(
            f"size={size} for y of {y.shape[1:3]} pixels: max-pooling makes at most one pixel more of an axis, so "
            f"expected at least {least}; the nearest is {nearest}"
        )
    return _unpool(y, indices.astype(jnp.int32), size)


def bed_of_nails(y: Array, factor: int | Sequence[int]) -> Array:
    """Writes each value at the top left of its cell and zeros elsewhere: x[:, f i, f j] = y[:, i, j].

    The exact adjoint of strided sub-sampling, x[:, ::f, ::f].

    Args:
        y: [B, H, W, C], any dtype.
        factor: f, pixels of a cell per axis.

    Returns:
        [B, f H, f W, C] of y's dtype.

    Raises:
        ValueError: y is no batch of images, or factor below 1.
    """
    f, g = _factors(y, factor)
    return jax.lax.pad(y, jnp.zeros((), y.dtype), ((0, 0, 0), (0, f - 1, f - 1), (0, g - 1, g - 1), (0, 0, 0)))


def nearest_unpool(y: Array, factor: int | Sequence[int]) -> Array:
    """Repeats each value all over its cell: x[:, f i + p, f j + q] = y[:, i, j] for p, q < f.

    The exact adjoint of summing the pixels of each cell, which is f^2 times `avg_pool(x, f)`.

    Args:
        y: [B, H, W, C], any dtype.
        factor: f, pixels of a cell per axis.

    Returns:
        [B, f H, f W, C] of y's dtype. Its gradient sums in float32 (float64 for float64), in reverse mode, twice too.

    Raises:
        ValueError: y is no batch of images, or factor below 1.
    """
    factors = _factors(y, factor)
    return select_pixels(y, *(np.repeat(np.arange(n), f) for n, f in zip(y.shape[1:3], factors, strict=True)))


def _factors(y: Array, factor: int | Sequence[int]) -> tuple[int, ...]:
    if y.ndim != 4:
        raise ValueError(f"y of shape {y.shape}: expected [B, H, W, C]")
    return per_axis("factor", factor, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
@functools.partial(jax.jit, static_argnums=2)
def _unpool(y, indices, size):
    scatter = functools.partial(_scatter, size=size)
    cell = tuple(_cell(n, m) for n, m in zip(size, y.shape[1:3], strict=True)) if y.size else (None,)
    if None in cell:
        return scatter(y, indices)
    compare = functools.partial(_compare, size=size, cell=cell)

    def by_cells(y: Array, indices: Array) -> Array:
        return jax.lax.cond(_all_in_cells(indices, size, cell), compare, scatter, y, indices)

    return jax.lax.platform_dependent(y, indices, cpu=by_cells, default=scatter)


def _unpool_forward(y, indices, size):
    return _unpool(y, indices, size), indices


def _unpool_backward(size, indices, g):
    batch, height, width, channels = indices.shape
    flat = indices.reshape(batch, height * width, channels)
    legal = (flat >= 0) & (flat < size[0] * size[1])
    dy = jnp.take_along_axis(g.reshape(batch, size[0] * size[1], channels), jnp.where(legal, flat, 0), axis=1)
    return jnp.where(legal, dy, 0).reshape(indices.shape), None


_unpool.defvjp(_unpool_forward, _unpool_backward)


def _scatter(y, indices, size):
    batch, height, width, channels = y.shape
    pixels = size[0] * size[1]
    # A negative index would count from the end.
    flat = jnp.where(indices < 0, pixels, indices).reshape(batch, height * width, channels)

    def one(flat: Array, y: Array) -> Array:
        return jnp.zeros(pixels, y.dtype).at[flat].set(y, mode="drop")

    # Mapped over batch and channels: an index of the batch would have a mesh gather all of it on every device.
    return jax.vmap(jax.vmap(one, 1, 1))(flat, y.reshape(flat.shape)).reshape(batch, *size, channels)


def _cell(n: int, m: int) -> int | None:
    """Stride f at which windows of f pixels make m outputs of n pixels, rounding down or up; None if there is none."""
    down = n // m
    if down and n - down * m < down:
        return down
    return down + 1 if (down + 1) * m - n < down + 1 else None


def _all_in_cells(indices, size, cell):
    """Whether value (i, j) belongs somewhere in rows [f i, f i + f) and columns [g j, g j + g) of the image."""
    row = (indices.astype(jnp.uint32) // np.uint32(size[1])).astype(jnp.int32)  # a negative index lies in no cell
    column = indices - row * size[1]
    inside = True
    for place, n, f, m, axes in zip((row, column), size, cell, indices.shape[1:3], ((0, 2, 3), (0, 1, 3)), strict=True):
        first = np.expand_dims(f * np.arange(m, dtype=np.int32), axes)
        inside &= (place >= first) & (place < np.minimum(first + f, n))
    return jnp.all(inside)


def _compare(y, indices, size, cell):
    """Every pixel takes its cell's value if that belongs here: no scatter."""
    batch, height, width, channels = y.shape
    shape = (batch, height, cell[0], width, cell[1], channels)
    row, p, column, q = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in range(1, 5))
    row, column = row * cell[0] + p, column * cell[1] + q
    here = jnp.where(column < size[1], row * size[1] + column, -1)
    whole = lambda z: jnp.broadcast_to(z[:, :, None, :, None], shape)
    x = jnp.where(whole(indices) == here, whole(y), jnp.zeros((), y.dtype))
    x = x.reshape(batch, height * cell[0], width * cell[1], channels)[:, : size[0], : size[1]]
    return jnp.pad(x, ((0, 0), *((0, n - k) for n, k in zip(size, x.shape[1:3], strict=True)), (0, 0)))
