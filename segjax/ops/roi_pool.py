"""RoIPool: the maximum over each bin of a box whose corners and bins are rounded to whole pixels."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from segjax.ops.geometry import per_axis
from segjax.ops.pool import check_ordered
from segjax.ops.roi import check_regions
from segjax.ops.rounding import quotient, rounded
from segjax.types import Array


def roi_pool(
    features: Array,
    boxes: Array,
    batch_index: Array,
    *,
    output_size: int | Sequence[int],
    spatial_scale: float,
) -> Array:
    """Takes the maximum of each of a fixed number of bins of a box.

    Two roundings lose what RoIAlign keeps: the corners, times the scale, go to the nearest pixel (half away from 0;
    the pixel of the high corner belongs to the box, which has at least one), and bin i of n on a side of s pixels is
    [floor(i s / n), ceil((i + 1) s / n)), so neighbours may overlap by a pixel. A bin outside the map is 0.

    Args:
        features: [B, H, W, C], floating.
        boxes: f32[R, 4], in pixels of the image; R may be 0.
        batch_index: i32[R] in [0, B): the image of each box.
        output_size: (h, w) bins.
        spatial_scale: pixels of the map per pixel of the image.

    Returns:
        [R, h, w, C] of features' dtype. The gradient goes to the pixel that won, the first in row order among ties;
        reverse mode only, boxes get none.

    Raises:
        ValueError: shapes or a size out of range.

    Source:
        Girshick 2015, Fast R-CNN, section 2.1, https://arxiv.org/abs/1504.08083; torchvision.ops.roi_pool.
    """
    check_regions("roi_pool", features, boxes, batch_index)
    check_ordered("roi_pool", features)
    out = per_axis("output_size", output_size, 2)
    boxes = jax.lax.stop_gradient(jnp.asarray(boxes, jnp.float32))
    return _roi_pool(jnp.asarray(features), boxes, jnp.asarray(batch_index, jnp.int32), out, float(spatial_scale))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _roi_pool(features, boxes, batch_index, out, spatial_scale):
    bins = pool_bins(boxes, features.shape[1:3], out, spatial_scale)
    return _pool(features, batch_index, bins)


def pool_bins(boxes: Array, size: Sequence[int], out: Sequence[int], spatial_scale: float) -> list[tuple[Array, Array]]:
    """Which pixels each bin takes, per axis.

    Args:
        boxes: f32[R, 4].
        size: (H, W) of the map.
        out: bins per axis.
        spatial_scale: as in `roi_pool`.

    Returns:
        for rows, then for columns, (first i32[R, n], end i32[R, n]) in [0, pixels]; empty where end <= first.
    """
    scaled = rounded(boxes * jnp.float32(spatial_scale))
    whole = jnp.trunc(scaled)  # floor(x + 0.5) would round the largest float below 0.5 up
    corner = (whole + jnp.where(jnp.abs(scaled - whole) >= 0.5, jnp.sign(scaled), 0)).astype(jnp.int32)
    bins = []
    for axis, pixels, n in ((1, size[0], out[0]), (0, size[1], out[1])):
        start = corner[:, axis, None]
        side = quotient(jnp.maximum(corner[:, axis + 2, None] - start + 1, 1).astype(jnp.float32), n)
        i = jnp.arange(n, dtype=jnp.float32)[None]
        first, end = jnp.floor(i * side).astype(jnp.int32) + start, jnp.ceil((i + 1) * side).astype(jnp.int32) + start
        bins.append((jnp.clip(first, 0, pixels), jnp.clip(end, 0, pixels)))
    return bins


@jax.custom_vjp
def _pool(features, batch_index, bins):
    return _best(features, batch_index, bins)[0]


def _best(features, batch_index, bins):
    """Value and place (row, column: y W + x, -1 if the bin is empty) of each maximum, [R, h, w, C]."""
    _, height, width, channels = features.shape
    (top, bottom), (left, right) = bins
    rows, columns = (jnp.maximum(jnp.max(end - first, initial=0), 0) for first, end in bins)
    flat = features.reshape(-1, channels)
    lowest = jnp.finfo(features.dtype).min if jnp.issubdtype(features.dtype, jnp.floating) else None
    lowest = jnp.asarray(jnp.iinfo(features.dtype).min if lowest is None else lowest, features.dtype)

    def step(k, state):
        best, place = state
        y, x = top + k // jnp.maximum(columns, 1), left + k % jnp.maximum(columns, 1)
        inside = (y < bottom)[:, :, None] & (x < right)[:, None, :]
        here = y[:, :, None] * width + x[:, None, :]
        value = jnp.take(flat, batch_index[:, None, None] * (height * width) + here, axis=0, mode="clip")
        take = inside[..., None] & (value > best)
        return jnp.where(take, value, best), jnp.where(take, here[..., None], place)

    shape = (*top.shape, left.shape[1], channels)
    start = jnp.full(shape, lowest), jnp.full(shape, -1, jnp.int32)
    best, place = jax.lax.fori_loop(0, rows * columns, step, start)
    filled = (bottom > top)[:, :, None] & (right > left)[:, None, :]
    return jnp.where(filled[..., None], best, 0), place


def _pool_forward(features, batch_index, bins):
    value, place = _best(features, batch_index, bins)
    return value, (jnp.zeros((0, *features.shape), features.dtype), batch_index, place)


def _pool_backward(saved, g):
    like, batch_index, place = saved
    batch, height, width, channels = like.shape[1:]
    dtype = jnp.promote_types(g.dtype, jnp.float32)
    pixel = jnp.where(place < 0, batch * height * width, batch_index[:, None, None, None] * (height * width) + place)
    channel = jnp.broadcast_to(jnp.arange(channels), place.shape)
    flat = jnp.zeros((batch * height * width, channels), dtype).at[pixel, channel].add(g.astype(dtype), mode="drop")
    return flat.reshape(like.shape[1:]).astype(like.dtype), None, None


_pool.defvjp(_pool_forward, _pool_backward)
