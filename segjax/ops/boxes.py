"""Boxes: areas, overlaps, clipping, the regression code of R-CNN and anchors.

A box is (x0, y0, x1, y1) in pixels, corners at pixel edges: the box of one pixel at column 3, row 5 is (3, 5, 4, 6).
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from segjax.ops.geometry import per_axis
from segjax.ops.rounding import rounded
from segjax.types import Array

LARGEST_SCALE = math.log(1000 / 16)


def box_area(boxes: Array) -> Array:
    """Width times height, as they come: inverted in one axis is negative, in both positive.

    Args:
        boxes: f32[..., 4]; floats of fewer bits are computed with as float32, integers as int32 at least.

    Returns:
        f32[...], square pixels.
    """
    boxes = wide(boxes)
    return _area(*(boxes[..., i] for i in range(4)))


def box_iou(a: Array, b: Array) -> Array:
    """Area of the intersection over area of the union, of every box of a with every one of b.

    Args:
        a: f32[..., N, 4]; other numbers as in `box_area`.
        b: f32[..., M, 4].

    Returns:
        f32[..., N, M]; NaN (0 / 0) where both boxes have no area.

    Source:
        torchvision.ops.box_iou, whose results for boxes without area or inverted these are.
    """
    a, b = wide(a), wide(b)
    x0, y0, x1, y1 = (a[..., :, None, i] for i in range(4))
    u0, v0, u1, v1 = (b[..., None, :, i] for i in range(4))
    return overlap((x0, y0, x1, y1), (u0, v0, u1, v1))


def wide(boxes: Array) -> Array:
    """Boxes whose areas do not overflow: of at least 32 bits.

    Args:
        boxes: numbers, any shape.

    Returns:
        the same, f32 or i32 if they were of fewer bits.
    """
    boxes = jnp.asarray(boxes)
    least = jnp.float32 if jnp.issubdtype(boxes.dtype, jnp.floating) else jnp.int32
    return boxes.astype(jnp.promote_types(boxes.dtype, least))


def overlap(a: Sequence[Array], b: Sequence[Array]) -> Array:
    """IoU of boxes given as four arrays each, which broadcast.

    Args:
        a: x0, y0, x1 and y1.
        b: the same.

    Returns:
        of the shape they broadcast to.
    """
    width = jnp.maximum(jnp.minimum(a[2], b[2]) - jnp.maximum(a[0], b[0]), 0)
    height = jnp.maximum(jnp.minimum(a[3], b[3]) - jnp.maximum(a[1], b[1]), 0)
    intersection = rounded(width * height)
    return intersection / (_area(*a) + _area(*b) - intersection)


def _area(x0, y0, x1, y1):
    return rounded((x1 - x0) * (y1 - y0))


def clip_boxes(boxes: Array, size: Sequence[int | Array]) -> Array:
    """Moves corners that lie outside an image to its edge.

    Args:
        boxes: f32[..., 4].
        size: (H, W) of the image, numbers or scalar arrays, traced or not.

    Returns:
        f32[..., 4] with x in [0, W] and y in [0, H].
    """
    height, width = (jnp.asarray(n, boxes.dtype) for n in (size[0], size[1]))
    return jnp.clip(boxes, 0, jnp.stack([width, height, width, height]).reshape((1,) * (boxes.ndim - 1) + (4,)))


def encode_boxes(boxes: Array, anchors: Array, *, weights: Sequence[float] = (1, 1, 1, 1)) -> Array:
    """Writes boxes as shifts and scales of anchors: what a regression is to predict.

        t = (wx (x - xa) / wa, wy (y - ya) / ha, ww log(w / wa), wh log(h / ha))   x, y centres; w, h sides

    Args:
        boxes: f32[..., 4].
        anchors: f32[..., 4], with sides above 0; the leading axes broadcast.
        weights: wx, wy, ww and wh.

    Returns:
        f32[..., 4]; not finite where a box has no area.

    Source:
        Girshick et al. 2014, R-CNN, appendix C, https://arxiv.org/abs/1311.2524; torchvision's and detectron2's coders.
    """
    wx, wy, ww, wh = weights
    x, y, w, h = _centre_and_sides(boxes)
    xa, ya, wa, ha = _centre_and_sides(anchors)
    return jnp.stack([wx * (x - xa) / wa, wy * (y - ya) / ha, ww * jnp.log(w / wa), wh * jnp.log(h / ha)], axis=-1)


def decode_boxes(
    deltas: Array, anchors: Array, *, weights: Sequence[float] = (1, 1, 1, 1), clamp: float = LARGEST_SCALE
) -> Array:
    """Moves and scales anchors by what a regression predicts: the inverse of `encode_boxes`.

    Args:
        deltas: f32[..., 4].
        anchors: f32[..., 4]; the leading axes broadcast.
        weights: as in `encode_boxes`.
        clamp: the largest logarithm of a scale, log(1000 / 16).

    Returns:
        f32[..., 4], not clipped to any image.
    """
    x, y, w, h = _centre_and_sides(anchors)
    dx, dy, dw, dh = (deltas[..., i] / weight for i, weight in enumerate(weights))
    x, y = dx * w + x, dy * h + y
    w, h = (0.5 * (jnp.exp(jnp.minimum(d, clamp)) * side) for d, side in ((dw, w), (dh, h)))
    return jnp.stack([x - w, y - h, x + w, y + h], axis=-1)


def _centre_and_sides(boxes: Array) -> tuple[Array, ...]:
    x0, y0, x1, y1 = (boxes[..., i] for i in range(4))
    w, h = x1 - x0, y1 - y0
    return x0 + 0.5 * w, y0 + 0.5 * h, w, h


def anchors(
    feature_size: int | Sequence[int],
    stride: int | Sequence[int],
    *,
    size: float | Sequence[float],
    aspect_ratios: Sequence[float],
    rounded: bool,
) -> Array:
    """The boxes that region proposals start from: the same few around every place (i s, j s) of a feature map's pixels.

    An anchor of ratio r and size n has sides n / sqrt(r) and n sqrt(r), so r is height over width.

    Args:
        feature_size: (H, W) of the feature map.
        stride: pixels of the image per pixel of the feature map, s, or one per axis (y, x).
        size: square root of the anchors' area, pixels of the image; or several.
        aspect_ratios: height over width.
        rounded: corners rounded to whole pixels, half to even, and the ratios as the outer loop over a pixel's anchors
            (torchvision); otherwise as they are, the sizes as the outer loop (detectron2).

    Returns:
        f32[H * W * A, 4] in (y, x, anchor) order, A sizes times ratios.

    Raises:
        ValueError: no sizes or ratios, or one that is not above 0.
    """
    height, width = per_axis("feature_size", feature_size, 2, minimum=0)
    steps = per_axis("stride", stride, 2)
    sizes = np.atleast_1d(np.asarray(size, np.float64))
    ratios = np.atleast_1d(np.asarray(aspect_ratios, np.float64))
    if not (sizes.size and ratios.size and np.all(sizes > 0) and np.all(ratios > 0)):
        raise ValueError(f"size={size!r} and aspect_ratios={aspect_ratios!r}: expected one or more numbers > 0 of each")
    if rounded:
        root = np.sqrt(ratios.astype(np.float32))[:, None]
        sides = [(f * sizes.astype(np.float32)[None]).ravel() for f in (np.float32(1) / root, root)]
    else:
        w = np.sqrt(sizes[:, None] ** 2 / ratios[None])
        sides = [w.ravel(), (ratios[None] * w).ravel()]
    cell = np.stack([-sides[0], -sides[1], sides[0], sides[1]], axis=1) / 2
    cell = (np.round(cell) if rounded else cell).astype(np.float32)
    y, x = (s * np.arange(n, dtype=np.float32) for s, n in zip(steps, (height, width), strict=True))
    shift = np.stack([*reversed(np.meshgrid(y, x, indexing="ij"))] * 2, axis=-1)
    return jnp.asarray((shift[:, :, None] + cell[None, None]).reshape(-1, 4))
