"""What the losses of Mask R-CNN look at: sampled anchors and regions, and what the network should say of each.

``sample_*`` are of one image; the model maps them over the batch.

Source: Ren et al. 2016 (Faster R-CNN), section 3.1.2, https://arxiv.org/abs/1506.01497; He et al. 2017 (Mask R-CNN),
section 3.1, https://arxiv.org/abs/1703.06870.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segjax import ops
from segjax.models._rpn import TINY, long_enough
from segjax.types import BOXES, BOXES_VALID, CLASSES, CROWD, MASK_BOXES, MASKS, VALID, Array, Batch, HostArray


class Truth(NamedTuple):
    """The objects of one image (or, with a leading axis, of a batch)."""

    boxes: Array  # f32[N, 4]
    classes: Array  # i32[N]
    valid: Array  # bool[N]: rows that are objects
    crowd: Array  # bool[N]: rows that are crowds
    real: Array  # f32[]: 0 for an image that only fills up the batch


def read(targets: Batch, factors: Array) -> tuple[Truth, tuple[Array, Array]]:
    """The objects of a batch in pixels of the resized image, and their masks with the boxes these were cut out by.

    Objects without extent, which have no box coding, are none; without any rows there is one that is none.
    """
    missing = [name for name in (BOXES, CLASSES, MASKS, BOXES_VALID) if name not in targets]
    if missing:
        raise ValueError(
            f"targets of Mask R-CNN have no {missing[0]!r}: expected boxes, classes, masks and boxes_valid"
        )
    boxes = jnp.asarray(targets[BOXES], jnp.float32) * factors
    mask_boxes = jnp.asarray(targets[MASK_BOXES], jnp.float32) * factors if MASK_BOXES in targets else boxes
    valid = jnp.asarray(targets[BOXES_VALID]) & long_enough(boxes, TINY)
    crowd = jnp.asarray(targets[CROWD]) & valid if CROWD in targets else jnp.zeros_like(valid)
    boxes = jnp.where(valid[..., None], boxes, 0.0)
    real = jnp.asarray(targets[VALID]) if VALID in targets else jnp.ones(len(boxes), bool)
    objects = (boxes, jnp.asarray(targets[CLASSES]).astype(jnp.int32), valid & ~crowd, crowd)
    masks = (jnp.asarray(targets[MASKS]), mask_boxes)
    if boxes.shape[1] == 0:
        objects, masks = (tuple(_one_row(x) for x in part) for part in (objects, masks))
    return Truth(*objects, real.astype(jnp.float32)), masks


def _one_row(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (0, 1), *((0, 0),) * (x.ndim - 2)))


def assign(
    boxes: Array, truth: Truth, *, foreground: float, background: float, low_quality: bool, crowd_threshold: float
) -> tuple[Array, Array]:
    """Which object each box stands for.

    Objects by ``ops.match``. A box that stands for none, and of whose area at least ``crowd_threshold`` lies in one
    crowd, is no background either: COCO's evaluation counts such a detection neither way. With 0, crowds are not
    there at all, as in torchvision and detectron2, which drop them from the data.

    Args:
        boxes: f32[R, 4].
        truth: of the image.
        foreground, background, low_quality: as in ``ops.match``.
        crowd_threshold: share of a box's own area, in (0, 1]; or 0.
    Returns:
        (index i32[R] into the objects, label i32[R]: 1 object, 0 background, -1 neither).
    """
    options = {"foreground": foreground, "background": background, "low_quality": low_quality}
    index, label = ops.match_boxes(boxes, truth.boxes, truth_valid=truth.valid, **options)
    if not crowd_threshold:
        return index, label
    inside = ops.covered(boxes, truth.boxes, valid=truth.crowd, share=crowd_threshold)
    return index, jnp.where((label == 0) & inside, -1, label)


def sample_anchors(
    key: Array,
    anchors: Array,
    truth: Truth,
    *,
    count: int,
    positive_fraction: float,
    foreground: float,
    background: float,
    crowd_threshold: float,
) -> dict[str, Array]:
    """Which anchors of one image the losses look at, and what they should say.

    Args:
        key: PRNG key.
        anchors: f32[n, 4], of all levels.
        truth: of the image.
        count: S, anchors sampled; at most Q = int(count * positive_fraction) of them objects.
        foreground, background, crowd_threshold: as in ``assign``; the best anchors of each object are always objects.
    Returns:
        "index" i32[S], "label" f32[S] (1 for objects), "weight" f32[S] (0 for rows that only fill up), objects first;
        "positive" f32[Q] and "target" f32[Q, 4], the box coding of the first Q, zeros where they are no objects.
    """
    options = {"foreground": foreground, "background": background, "crowd_threshold": crowd_threshold}
    matched, label = assign(anchors, truth, low_quality=True, **options)
    index, valid = ops.sample_balanced(key, label, count=count, positive_fraction=positive_fraction)
    first = index[: int(count * positive_fraction)]
    positive = ((label[index] == 1) & valid)[: len(first)]
    target = encode(truth.boxes[matched[first]], anchors[first], positive)
    label = ((label[index] == 1) & valid).astype(jnp.float32)
    return {
        "index": index,
        "label": label,
        "weight": valid.astype(jnp.float32),
        "positive": positive.astype(jnp.float32),
        "target": target,
    }


def encode(
    boxes: Array, anchors: Array, positive: Array, weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
) -> Array:
    """f32[R, 4]: the coding of boxes by anchors, and zeros where not ``positive``, whatever stands there."""
    unit = jnp.asarray([[0.0, 0.0, 1.0, 1.0]])
    boxes, anchors = (jnp.where(positive[:, None], x, unit) for x in (boxes, anchors))
    return ops.encode_boxes(boxes, anchors, weights=weights)


def sample_regions(
    key: Array,
    proposals: Array,
    valid: Array,
    truth: Truth,
    *,
    count: int,
    positive_fraction: float,
    foreground: float,
    background: float,
    crowd_threshold: float,
    weights: tuple[float, float, float, float],
    background_column: int,
    first_class: int,
) -> dict[str, Array]:
    """Which regions of one image the heads are trained on: a balanced sample of proposals and the objects' own boxes.

    Args:
        key: PRNG key.
        proposals, valid: f32[P, 4], bool[P].
        truth: of the image.
        count: R; at most Q = int(count * positive_fraction) of them objects.
        foreground, background, crowd_threshold: as in ``assign``.
        weights: of the box coding.
        background_column, first_class: columns of the background and of class 0.
    Returns:
        "boxes" f32[R, 4], objects first; "column" i32[R] of the class or the background; "weight" f32[R] (0 for rows
        that only fill up); of the first Q "positive" f32[Q], "target" f32[Q, 4] (box coding) and "object" i32[Q].
    """
    candidates = jnp.concatenate([proposals, truth.boxes])
    valid = jnp.concatenate([valid, truth.valid])
    options = {"foreground": foreground, "background": background, "crowd_threshold": crowd_threshold}
    matched, label = assign(candidates, truth, low_quality=False, **options)
    label = jnp.where(valid, label, -1)
    index, drawn = ops.sample_balanced(key, label, count=count, positive_fraction=positive_fraction)
    boxes = jnp.where(drawn[:, None], candidates[index], 0.0)
    is_object, matched = (label[index] == 1) & drawn, matched[index]
    first = int(count * positive_fraction)
    positive = is_object[:first]
    return {
        "boxes": boxes,
        "column": jnp.where(is_object, truth.classes[matched] + first_class, background_column),
        "weight": drawn.astype(jnp.float32),
        "positive": positive.astype(jnp.float32),
        "target": encode(truth.boxes[matched[:first]], boxes[:first], positive, weights),
        "object": jnp.where(positive, matched[:first], 0),
    }


def factors(given: tuple[int, int], wanted: tuple[int, int]) -> HostArray:
    """f32[1, 1, 4]: what (x0, y0, x1, y1) are multiplied by when an image of one size becomes one of another."""
    y, x = (np.float32(b) / np.float32(a) for a, b in zip(given, wanted, strict=True))
    return np.array([[[x, y, x, y]]], np.float32)


def keys_of(key: Array, rows: int, axis_name: str | None) -> tuple[Array, Array]:
    """Keys of the anchors and of the regions of each image, by its place in the global batch alone: [B] each."""
    index = jnp.arange(rows)
    if axis_name:
        index += jax.lax.axis_index(axis_name) * rows
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(index)
    return tuple(jax.vmap(lambda k, use=use: jax.random.fold_in(k, use))(keys) for use in (0, 1))
