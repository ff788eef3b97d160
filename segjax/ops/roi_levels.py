"""RoIAlign of a feature pyramid: each box from one of the levels, all in one pass."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from segjax.ops.geometry import per_axis
from segjax.ops.roi import _align, axis_samples
from segjax.types import Array


def roi_align_levels(
    features: Sequence[Array],
    boxes: Array,
    level: Array,
    *,
    output_size: int | Sequence[int],
    spatial_scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    max_sampling: int | None = None,
) -> Array:
    """`roi_align` of each box on its own level of a pyramid.

    Only where samples lie depends on the level, so the levels of an image are strung together and read in one pass: the
    cost is that of one `roi_align`, not one per level. Images stay apart, each on its own device where the batch is
    divided among several.

    Args:
        features: levels [B, H, W, C], floating, of one dtype.
        boxes: f32[B, R, 4], of each image, in its pixels.
        level: i32[B, R], index into `features`.
        output_size: (h, w) bins.
        spatial_scales: of each level, pixels of the map per pixel of the image.
        sampling_ratio: as in `roi_align`.
        aligned: as in `roi_align`.
        max_sampling: as in `roi_align`, needed with an adaptive ratio.

    Returns:
        [B, R, h, w, C] of features' dtype. Differentiable by the features in reverse mode; boxes get no gradient.

    Raises:
        ValueError: levels, scales, boxes or a `level` that do not fit, an adaptive ratio without `max_sampling`.

    Source:
        Lin et al. 2017 (FPN), section 4.2, https://arxiv.org/abs/1612.03144; torchvision.ops.MultiScaleRoIAlign.
    """
    shapes = [x.shape for x in features]
    if not shapes or len(shapes) != len(spatial_scales) or any(len(n) != 4 or 0 in n[1:3] for n in shapes):
        raise ValueError(
            f"roi_align_levels of features {shapes} with {len(spatial_scales)} scales: expected one scale per level "
            "[B, H, W, C] with H and W >= 1"
        )
    if (
        boxes.ndim != 3
        or boxes.shape[2] != 4
        or level.shape != boxes.shape[:2]
        or {n[0] for n in shapes} != {len(boxes)}
    ):
        raise ValueError(
            f"roi_align_levels of boxes {boxes.shape} with level {level.shape} in {[n[0] for n in shapes]} images: "
            "expected [B, R, 4] with [B, R] in B images"
        )
    if sampling_ratio <= 0 and max_sampling is None:
        raise ValueError("roi_align_levels with an adaptive sampling_ratio: expected max_sampling")
    out = per_axis("output_size", output_size, 2)
    samples = (sampling_ratio if sampling_ratio > 0 else max_sampling,) * 2
    images, count = level.shape
    flat_boxes = jax.lax.stop_gradient(jnp.asarray(boxes, jnp.float32)).reshape(-1, 4)
    chosen, first = None, 0
    for number, ((_, height, width, _), scale) in enumerate(zip(shapes, spatial_scales, strict=True)):
        found = axis_samples(flat_boxes, (height, width), out, samples, scale, sampling_ratio, aligned)
        (row, row_weight, _), (column, column_weight, _) = found
        # Levels strung together are one image with a single column: pixel = first + row width + column.
        taps = first + row * width, row_weight, column, column_weight
        here = (level.reshape(-1) == number)[:, None, None]
        chosen = taps if chosen is None else tuple(jnp.where(here, a, b) for a, b in zip(taps, chosen, strict=True))
        first += height * width
    used = _used(chosen[1]), _used(chosen[3])
    strung = jnp.concatenate([x.reshape(images, -1, x.shape[3]) for x in features], axis=1)[:, None, :, None]

    def of_image(x: Array, row: Array, row_weight: Array, column: Array, column_weight: Array) -> Array:
        taps = [(row, row_weight, used[0]), (column, column_weight, used[1])]
        return _align(x, jnp.zeros(count, jnp.int32), taps)

    each = (values.reshape(images, count, *values.shape[1:]) for values in chosen)
    return jax.vmap(of_image)(strung, *each).astype(strung.dtype)


def _used(weight: Array) -> Array:
    """i32: from which tap on all weights [R, n, t] are 0."""
    tap = jnp.arange(1, weight.shape[2] + 1, dtype=jnp.int32)
    return jnp.max(jnp.where(jnp.any(weight != 0, axis=(0, 1)), tap, 0), initial=0)
