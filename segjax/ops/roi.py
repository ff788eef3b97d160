"""RoIAlign: the mean of bilinearly interpolated samples in each bin of a box.

Bilinear interpolation is separable, and so is the border rule: a sample's four weights are products of two weights of
its row and two of its column. Each bin thus reads `2 samples` rows times `2 samples` columns.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops.geometry import per_axis
from segjax.ops.rounding import quotient, rounded
from segjax.types import Array

_UNROLLED = 4  # taps of an axis up to which every pair is a term of one sum


def roi_align(
    features: Array,
    boxes: Array,
    batch_index: Array,
    *,
    output_size: int | Sequence[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    max_sampling: int | None = None,
) -> Array:
    """Resamples boxes of images to a fixed size without rounding their corners.

    Each of the output's bins is the mean of samples on a regular grid inside it, interpolated bilinearly. A sample
    less than one pixel outside the map reads its border, one farther out 0.

    Args:
        features: [B, H, W, C], floating.
        boxes: f32[R, 4], in pixels of the image; R may be 0.
        batch_index: i32[R] in [0, B): the image of each box.
        output_size: (h, w) bins.
        spatial_scale: pixels of the map per pixel of the image.
        sampling_ratio: samples of a bin per axis; 0 or less: ceil(bin's side), for each box its own number.
        aligned: take the centre of pixel 0 to lie at 0.5 (shifts the samples by half a pixel). Without it the corners
            are taken for pixel centres, and boxes have sides of at least one pixel of the map.
        max_sampling: with an adaptive ratio, a bound on the samples per axis: ceil(side / bins) of the largest box, in
            pixels of the map. None reads it off the boxes, which under jit have no values. Boxes that would need more
            samples get this many.

    Returns:
        [R, h, w, C] of features' dtype. Differentiable by the features in reverse mode; boxes get no gradient.

    Raises:
        ValueError: shapes or a size out of range, or an adaptive ratio under jit without `max_sampling`.

    Source:
        He et al. 2017, Mask R-CNN, section 3, https://arxiv.org/abs/1703.06870; torchvision.ops.roi_align, detectron2's
        ROIAlign (aligned).
    """
    check_regions("roi_align", features, boxes, batch_index)
    out = per_axis("output_size", output_size, 2)
    boxes = jax.lax.stop_gradient(jnp.asarray(boxes, jnp.float32))
    if max_sampling is not None and max_sampling < 1:
        raise ValueError(f"max_sampling={max_sampling}: expected 1 or more")
    if sampling_ratio > 0:
        samples = (sampling_ratio, sampling_ratio)
    elif max_sampling is not None:
        samples = (max_sampling, max_sampling)
    else:
        samples = _needed_samples(boxes, out, spatial_scale, aligned)
    static = (out, samples, float(spatial_scale), int(sampling_ratio), bool(aligned))
    return _roi_align(jnp.asarray(features), boxes, jnp.asarray(batch_index, jnp.int32), *static)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6, 7))
def _roi_align(features, boxes, batch_index, out, samples, spatial_scale, sampling_ratio, aligned):
    taps = axis_samples(boxes, features.shape[1:3], out, samples, spatial_scale, sampling_ratio, aligned)
    return _align(features, batch_index, taps).astype(features.dtype)


def check_regions(name: str, features: Array, boxes: Array, batch_index: Array) -> None:
    """Checks the arrays that an operation on regions takes.

    Args:
        name: the operation's name, for the message.
        features: [B, H, W, C] with pixels.
        boxes: [R, 4].
        batch_index: [R], integers.

    Raises:
        ValueError: they are not.
    """
    if features.ndim != 4 or 0 in features.shape[1:3]:
        raise ValueError(f"{name} of features {features.shape}: expected [B, H, W, C] with H and W >= 1")
    if boxes.ndim != 2 or boxes.shape[1] != 4 or batch_index.shape != boxes.shape[:1]:
        raise ValueError(f"{name} of boxes {boxes.shape}, batch_index {batch_index.shape}: expected [R, 4] and [R]")
    if not jnp.issubdtype(batch_index.dtype, jnp.integer):
        raise ValueError(f"{name} with batch_index of {batch_index.dtype}: expected integers")


def _needed_samples(boxes, out, spatial_scale, aligned):
    """The largest adaptive number of samples per axis (y, x)."""
    if isinstance(boxes, jax.core.Tracer):
        raise ValueError(
            "roi_align under jit with an adaptive sampling_ratio needs max_sampling: the number of samples is "
            "ceil(box side / bins) of the largest box, which must be known when the program is compiled"
        )
    if len(boxes) == 0:
        return 1, 1
    _, side = _starts_and_sides(np.asarray(boxes), np, spatial_scale, aligned)
    return tuple(max(1, math.ceil(np.max(s / np.float32(n)))) for s, n in zip(side, out, strict=True))


def _starts_and_sides(boxes, xp, spatial_scale, aligned):
    """((y0, x0), (height, width)) in pixels of the map, each [R]."""
    offset = xp.float32(0.5 if aligned else 0)
    scaled = boxes * xp.float32(spatial_scale)
    corners = [(rounded(scaled) if xp is jnp else scaled)[:, i] - offset for i in range(4)]
    sides = corners[3] - corners[1], corners[2] - corners[0]
    if not aligned:
        sides = tuple(xp.maximum(side, xp.float32(1)) for side in sides)
    return (corners[1], corners[0]), sides


def axis_samples(
    boxes: Array,
    size: Sequence[int],
    out: Sequence[int],
    samples: Sequence[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> list[tuple[Array, Array, Array]]:
    """Where the samples of each bin read, per axis.

    Args:
        boxes: f32[R, 4].
        size: (H, W) of the map.
        out: bins per axis.
        samples: the most samples of a bin per axis.
        spatial_scale: as in `roi_align`.
        sampling_ratio: as in `roi_align`.
        aligned: as in `roi_align`.

    Returns:
        for rows, then for columns, (index i32[R, n, 2 s], weight f32[R, n, 2 s], i32): bin i's mean over the samples of
        that axis is the sum of weight times pixel at index; all weights are 0 from the number in the third place on.
    """
    starts, sides = _starts_and_sides(boxes, jnp, spatial_scale, aligned)
    taps = []
    for start, side, pixels, n, most in zip(starts, sides, size, out, samples, strict=True):
        bin_side = quotient(side, n)[:, None, None]
        # Both rules of the border are steps: places are computed in the order, and with the rounding, of the source.
        number = jnp.where(bin_side == bin_side, sampling_ratio, 1) if sampling_ratio > 0 else jnp.ceil(bin_side)
        number = jnp.minimum(number, most)
        i, s = jnp.arange(n, dtype=jnp.float32), jnp.arange(most, dtype=jnp.float32)
        within = quotient((s + 0.5)[None, None] * bin_side, number)
        place = start[:, None, None] + rounded(i[None, :, None] * bin_side) + within
        counts = (s[None, None] < number) & (place >= -1) & (place <= pixels)
        place = jnp.clip(jnp.where(counts, place, 0), 0, pixels - 1)
        low = jnp.minimum(place.astype(jnp.int32), pixels - 1)
        fraction = place - low
        weight = jnp.where(counts, 1 / jnp.maximum(number, 1), 0)
        both = ((low, jnp.minimum(low + 1, pixels - 1)), (weight * (1 - fraction), weight * fraction))
        index, weight = (jnp.stack(pair, axis=-1).reshape(*low.shape[:2], 2 * most) for pair in both)
        taps.append((index, weight, 2 * jnp.max(jnp.where(number > 0, number, 0), initial=0).astype(jnp.int32)))
    return taps


@jax.custom_vjp
def _align(features, batch_index, taps):
    """The linear map whose transpose is `_spread`."""
    flat = features.reshape(-1, features.shape[3])
    dtype = jnp.promote_types(features.dtype, jnp.float32)

    def term(a, b):
        index, weight = _tap(features.shape, batch_index, taps, a, b)
        return weight.astype(dtype)[..., None] * jnp.take(flat, index, axis=0, mode="clip").astype(dtype)

    (rows, _, used_rows), (columns, _, used_columns) = taps
    if max(rows.shape[2], columns.shape[2]) <= _UNROLLED:
        pairs = itertools.product(range(rows.shape[2]), range(columns.shape[2]))
        return functools.reduce(jnp.add, (term(a, b) for a, b in pairs))
    body = lambda k, y: y + term(k // jnp.maximum(used_columns, 1), k % jnp.maximum(used_columns, 1))
    start = jnp.zeros((*rows.shape[:2], columns.shape[1], features.shape[3]), dtype)
    return jax.lax.fori_loop(0, used_rows * used_columns, body, start)


def _tap(shape, batch_index, taps, a, b):
    """Flat index and weight of tap (a, b) of every bin, each [R, h, w]."""
    (row, row_weight), (column, column_weight) = (
        tuple(jax.lax.dynamic_index_in_dim(z, k, axis=2, keepdims=False) for z in axis[:2])
        for k, axis in zip((a, b), taps, strict=True)
    )
    index = (batch_index[:, None] * shape[1] + row)[:, :, None] * shape[2] + column[:, None, :]
    return index, row_weight[:, :, None] * column_weight[:, None, :]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _spread(g, batch_index, taps, shape):
    (_, _, used_rows), (_, _, used_columns) = taps

    def body(k, flat):
        index, weight = _tap(shape, batch_index, taps, k // used_columns, k % used_columns)
        return flat.at[index].add(weight.astype(g.dtype)[..., None] * g, mode="drop")

    flat = jnp.zeros((shape[0] * shape[1] * shape[2], shape[3]), g.dtype)
    return jax.lax.fori_loop(0, used_rows * used_columns, body, flat).reshape(shape)


def _align_forward(features, batch_index, taps):
    return _align(features, batch_index, taps), (jnp.zeros((0, *features.shape), features.dtype), batch_index, taps)


def _align_backward(saved, g):
    like, batch_index, taps = saved
    return _spread(g, batch_index, taps, like.shape[1:]).astype(like.dtype), None, None


def _spread_forward(g, batch_index, taps, shape):
    return _spread(g, batch_index, taps, shape), (batch_index, taps)


def _spread_backward(shape, saved, g):
    return _align(g, *saved), None, None


_align.defvjp(_align_forward, _align_backward)
_spread.defvjp(_spread_forward, _spread_backward)
