"""Masks of instances between image and box: training targets cut out of an image, predictions pasted into one.

Both ways are one matrix per axis and box: target = R m C', image = R' m C. Products run in float32.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from segjax.ops.geometry import per_axis
from segjax.ops.rounding import quotient, rounded
from segjax.types import Array

_AT_ONCE = 8  # whole-image masks that are in memory at a time
_MOST_SAMPLES = 1024  # of a bin per axis, lest a box gone astray take for ever


def mask_targets(masks: Array, boxes: Array, index: Array, *, size: int = 28, binary: bool = False) -> Array:
    """Cuts each box out of its object's mask: what a mask head is to predict there.

    Args:
        masks: [N, H, W] of whole images, bool or numbers 0 to 1.
        boxes: f32[R, 4], pixels.
        index: i32[R] in [0, N): the object of each box.
        size: rows and columns of a target.
        binary: detectron2's targets, 0 or 1: the mean of `aligned` samples is at least 0.5; otherwise torchvision's,
            soft, the mean of samples that are not aligned. Both take ceil(side / size) samples per axis.

    Returns:
        f32[R, size, size], 0 to 1; zeros if N is 0. No gradient.

    Raises:
        ValueError: shapes that do not fit, or size below 1.

    Source:
        torchvision's project_masks_on_boxes; detectron2's BitMasks.crop_and_resize.
    """
    _check("mask_targets", masks, boxes, index, size)
    if 0 in (len(masks), len(boxes)):
        return jnp.zeros((len(boxes), size, size), jnp.float32)
    rows, columns = (
        _sample_matrix(*side, size, n, limit=n, aligned=binary, place=lambda p: p)
        for side, n in zip(_sides(boxes), masks.shape[1:], strict=True)
    )
    masks = jnp.asarray(masks)
    cut = lambda args: _between(args[0], masks[args[2]], args[1])
    target = jax.lax.map(cut, (rows, columns, index.astype(jnp.int32)), batch_size=min(_AT_ONCE, len(boxes)))
    return _finish(target, binary)


def crop_mask_targets(
    crops: Array,
    crop_boxes: Array,
    boxes: Array,
    index: Array,
    *,
    size: int = 28,
    binary: bool = False,
    image_size: Sequence[int | Array] | None = None,
) -> Array:
    """`mask_targets` of masks that are kept in compact form: cut out by a box each and resampled to S x S.

    The samples lie where `mask_targets` takes them, and read the crop bilinearly, 0 outside it.

    Args:
        crops: u8[N, S, S], 0 to 255.
        crop_boxes: f32[N, 4], the boxes the crops were cut out by, pixels.
        boxes: f32[R, 4], pixels.
        index: i32[R] in [0, N).
        size: rows and columns of a target.
        binary: as in `mask_targets`.
        image_size: (H, W) of the image, at whose last row and column samples stop, as those of a whole mask do.

    Returns:
        f32[R, size, size], 0 to 1; zeros if N is 0, and for crops whose box has no area. No gradient.

    Raises:
        ValueError: shapes that do not fit, or size below 1.
    """
    _check("crop_mask_targets", crops, boxes, index, size)
    if crop_boxes.shape != (len(crops), 4):
        raise ValueError(f"crop_mask_targets of crop_boxes {crop_boxes.shape}: expected [{len(crops)}, 4]")
    if 0 in (len(crops), len(boxes)):
        return jnp.zeros((len(boxes), size, size), jnp.float32)
    index = index.astype(jnp.int32)
    matrices = []
    for axis, (side, crop) in enumerate(zip(_sides(boxes), _sides(crop_boxes), strict=True)):
        start, length = (z[index][:, None] for z in crop)
        cells = crops.shape[1 + axis]
        scale = jnp.where(length > 0, cells / jnp.where(length > 0, length, 1), jnp.inf)
        # Pixel p has its centre at p + 0.5, cell k of a crop at (k + 0.5) / scale from the crop's edge.
        place = lambda p, start=start, scale=scale: (p + 0.5 - start) * scale - 0.5
        limit = None if image_size is None else image_size[axis]
        matrices.append(_sample_matrix(*side, size, cells, limit=limit, aligned=binary, place=place))
    values = jnp.asarray(crops)[index].astype(jnp.float32) / 255
    return _finish(_between(matrices[0], values, matrices[1]), binary)


def _check(name, masks, boxes, index, size):
    if masks.ndim != 3 or boxes.ndim != 2 or boxes.shape[1] != 4 or index.shape != boxes.shape[:1]:
        raise ValueError(
            f"{name} of masks {masks.shape}, boxes {boxes.shape}, index {index.shape}: expected [N, H, W], [R, 4], [R]"
        )
    if size < 1:
        raise ValueError(f"size={size}: expected 1 or more")


def _sides(boxes):
    """((y0, height), (x0, width)), each f32[R]."""
    x0, y0, x1, y1 = (jax.lax.stop_gradient(jnp.asarray(boxes, jnp.float32))[:, i] for i in range(4))
    return (y0, y1 - y0), (x0, x1 - x0)


def _sample_matrix(
    start: Array, side: Array, bins: int, pixels: int, *, limit, aligned: bool, place: Callable[[Array], Array]
) -> Array:
    """f32[R, bins, pixels]: what each bin's mean over its ceil(side / bins) samples takes of each pixel.

    Args:
        start: f32[R], of the boxes on this axis.
        side: f32[R].
        bins: of a box.
        pixels: of the array that is sampled.
        limit: pixels of the image, beyond whose border samples are moved or left out; None for no border.
        aligned: as in `roi_align`.
        place: from pixels of the image to pixels of the array.
    """
    start = start[:, None] - (0.5 if aligned else 0.0)
    side = quotient(side if aligned else jnp.maximum(side, 1), bins)[:, None]
    number = jnp.clip(jnp.ceil(side), 0, _MOST_SAMPLES)
    i, pixel = jnp.arange(bins, dtype=jnp.float32)[None], jnp.arange(pixels, dtype=jnp.float32)[None, None]

    def add(s, matrix):
        p = start + rounded(i * side) + (s + 0.5) * side / number
        counts = s < number
        if limit is not None:
            counts &= (p >= -1) & (p <= limit)
            p = jnp.clip(p, 0, jnp.asarray(limit, jnp.float32) - 1)
        hat = jnp.maximum(1 - jnp.abs(place(p)[..., None] - pixel), 0)
        return matrix + jnp.where(counts[..., None], hat / number[..., None], 0)

    most = jnp.max(jnp.where(number > 0, number, 0)).astype(jnp.int32)  # a box that is NaN has no samples
    return jax.lax.fori_loop(0, most, add, jnp.zeros((len(start), bins, pixels), jnp.float32))


def _between(rows, masks, columns):
    """rows x masks x columns' of each, in float32."""
    y = jnp.einsum("...ph,...hw->...pw", rows, masks.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("...pw,...qw->...pq", y, columns, precision=jax.lax.Precision.HIGHEST)


def _finish(target, binary):
    return (target >= 0.5).astype(jnp.float32) if binary else target


def paste_masks(masks: Array, boxes: Array, size: int | Sequence[int], *, rule: str = "torchvision") -> Array:
    """Resamples square masks into their boxes in an otherwise empty image.

    "torchvision" puts one empty pixel around the mask, enlarges the box by the same factor about its centre, cuts its
    corners to whole numbers and resizes the mask to that many pixels, the last corner's included. "detectron2" reads
    the mask at the centre of every pixel. Both interpolate bilinearly; neither thresholds.

    Args:
        masks: [N, m, m], floating.
        boxes: f32[N, 4], pixels.
        size: (H, W) of the image.
        rule: "torchvision" or "detectron2".

    Returns:
        f32[N, H, W]; with detectron2's rule zeros for a box without width or height.

    Raises:
        ValueError: shapes that do not fit or an unknown rule.

    Source:
        torchvision's paste_masks_in_image; detectron2's paste_masks_in_image before its threshold.
    """
    if masks.ndim != 3 or boxes.shape != (len(masks), 4):
        raise ValueError(f"paste_masks of masks {masks.shape} and boxes {boxes.shape}: expected [N, m, m] and [N, 4]")
    if rule not in ("torchvision", "detectron2"):
        raise ValueError(f"rule={rule!r}: expected 'torchvision' or 'detectron2'")
    size = per_axis("size", size, 2)
    boxes = jnp.asarray(boxes, jnp.float32)
    if rule == "torchvision":
        padded = jnp.pad(masks, ((0, 0), (1, 1), (1, 1)))
        boxes = _enlarged(boxes, masks.shape[1:])
        axes = ((boxes[:, 1], boxes[:, 3]), (boxes[:, 0], boxes[:, 2]))
        matrices = (
            _resize_matrix(*axis, cells, n) for axis, cells, n in zip(axes, padded.shape[1:], size, strict=True)
        )
        return _between(next(matrices), padded, next(matrices))
    matrices = (
        _centre_matrix(*axis, cells, n) for axis, cells, n in zip(_sides(boxes), masks.shape[1:], size, strict=True)
    )
    return _between(next(matrices), masks, next(matrices))


def _enlarged(boxes, cells):
    """i32[N, 4]: boxes grown by (m + 2) / m about their centres, cut to whole numbers."""
    factor = [jnp.float32((m + 2) / m) for m in (cells[1], cells[0])]
    grown = []
    for axis in range(2):
        low, high = boxes[:, axis], boxes[:, axis + 2]
        half, centre = rounded((high - low) * 0.5 * factor[axis]), (high + low) * 0.5
        grown.append((centre - half, centre + half))
    (x0, x1), (y0, y1) = grown
    return jnp.stack([x0, y0, x1, y1], axis=-1).astype(jnp.int32)


def _resize_matrix(low, high, cells, pixels):
    """f32[N, pixels, cells]: row low + i is output i of a bilinear resize of `cells` to high - low + 1 pixels."""
    number = jnp.maximum(high - low + 1, 1)[:, None]
    i = jnp.arange(pixels)[None] - low[:, None]
    place = (i.astype(jnp.float32) + 0.5) * (jnp.float32(cells) / number.astype(jnp.float32)) - 0.5
    place = jnp.clip(place, 0, cells - 1)
    hat = jnp.maximum(1 - jnp.abs(place[..., None] - jnp.arange(cells, dtype=jnp.float32)[None, None]), 0)
    return jnp.where(((i >= 0) & (i <= (high - low)[:, None]))[..., None], hat, 0)


def _centre_matrix(start, side, cells, pixels):
    """f32[N, pixels, cells]: the weights of each pixel's centre between the mask's cells, which are 0 outside."""
    side = jnp.where(side == 0, jnp.nan, side)[:, None]
    place = (jnp.arange(pixels, dtype=jnp.float32)[None] + 0.5 - start[:, None]) / side * cells - 0.5
    hat = jnp.maximum(1 - jnp.abs(place[..., None] - jnp.arange(cells, dtype=jnp.float32)[None, None]), 0)
    return jnp.where(jnp.isnan(hat), 0, hat)
