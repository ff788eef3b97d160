"""RoIAlign of a feature pyramid: each box from one of the levels, all in one pass."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from segjax.ops.geometry import per_axis
from segjax.ops.roi import _align, axis_samples, check_regions
from segjax.types import Array


def roi_align_levels(
    features: Sequence[Array],
    boxes: Array,
    batch_index: Array,
    level: Array,
    *,
    output_size: int | Sequence[int],
    spatial_scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    max_sampling: int | None = None,
) -> Array:
    """`roi_align` of each box on its own level of a pyramid.

    Only where samples lie depends on the level, so the levels are strung together and read in one pass: the cost is
    that of one `roi_align`, not one per level.

    Args:
        features: levels [B, H, W, C], floating, of one dtype.
        boxes: f32[R, 4], in pixels of the image.
        batch_index: i32[R] in [0, B): the image of each box.
        level: i32[R], index into `features`.
        output_size: (h, w) bins.
        spatial_scales: of each level, pixels of the map per pixel of the image.
        sampling_ratio: as in `roi_align`.
        aligned: as in `roi_align`.
        max_sampling: as in `roi_align`, needed with an adaptive ratio.

    Returns:
        [R, h, w, C] of features' dtype. Differentiable by the features in reverse mode; boxes get no gradient.

    Raises:
        ValueError: as `roi_align`; levels, scales or a `level` that do not fit, an adaptive ratio without
            `max_sampling`.

    Source:
        Lin et al. 2017 (FPN), section 4.2, https://arxiv.org/abs/1612.03144; torchvision.ops.MultiScaleRoIAlign.
    """
    for x in features:
        check_regions("roi_align_levels", x, boxes, batch_index)
    if len(features) != len(spatial_scales) or not features or level.shape != batch_index.shape:
        raise ValueError(
            f"roi_align_levels of {len(features)} levels with {len(spatial_scales)} scales and level {level.shape}: "
            f"expected one scale per level, and one level per box, {batch_index.shape}"
        )
    if sampling_ratio <= 0 and max_sampling is None:
        raise ValueError("roi_align_levels with an adaptive sampling_ratio: expected max_sampling")
    out = per_axis("output_size", output_size, 2)
    samples = (sampling_ratio if sampling_ratio > 0 else max_sampling,) * 2
    boxes = jax.lax.stop_gradient(jnp.asarray(boxes, jnp.float32))
    batch_index, chosen, first = jnp.asarray(batch_index, jnp.int32), None, 0
    for number, (x, scale) in enumerate(zip(features, spatial_scales, strict=True)):
        images, height, width, channels = x.shape
        found = axis_samples(boxes, (height, width), out, samples, scale, sampling_ratio, aligned)
        (row, row_weight, _), (column, column_weight, _) = found
        start = (first + batch_index * (height * width))[:, None, None]
        # Everything strung together is one image with a single column: pixel = start + row width + column.
        taps = start + row * width, row_weight, column, column_weight
        here = (level == number)[:, None, None]
        chosen = taps if chosen is None else tuple(jnp.where(here, a, b) for a, b in zip(taps, chosen, strict=True))
        first += images * height * width
    row, row_weight, column, column_weight = chosen
    flat = jnp.concatenate([x.reshape(-1, x.shape[3]) for x in features])[None, :, None]
    taps = [(row, row_weight, _used(row_weight)), (column, column_weight, _used(column_weight))]
    return _align(flat, jnp.zeros_like(batch_index), taps).astype(flat.dtype)


def _used(weight: Array) -> Array:
    """i32: from which tap on all weights [R, n, t] are 0."""
    tap = jnp.arange(1, weight.shape[2] + 1, dtype=jnp.int32)
    return jnp.max(jnp.where(jnp.any(weight != 0, axis=(0, 1)), tap, 0), initial=0)
