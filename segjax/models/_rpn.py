"""Region proposals: the head on every level of a pyramid, and from its outputs boxes and what training compares.

Functions are of one image; the model maps them over the batch.

Source: Ren et al. 2016 (Faster R-CNN), section 3, https://arxiv.org/abs/1506.01497; on a pyramid: Lin et al. 2017,
section 4.1, https://arxiv.org/abs/1612.03144.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax import layers, ops
from segjax.types import Array

TINY = float(jnp.finfo(jnp.float32).tiny)  # the least side of a box that has any


class Head(nn.Module):
    """Objectness and box coding of every anchor: 3x3 convolutions with ReLU, then two 1x1 ones.

    Attributes:
        anchors: A, of each place.
        convs: how many 3x3 convolutions.
    """

    anchors: int
    convs: int = 1

    @nn.compact
    def __call__(self, features: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """Maps levels [B, h, w, C] to (logits f32[B, h w A], deltas f32[B, h w A, 4]) of each, anchors innermost."""
        channels = features[0].shape[-1]
        convs = [
            layers.Conv(channels, 3, bias=True, deviation=0.01, name=f"conv{number}")
            for number in range(1, self.convs + 1)
        ]
        objectness = layers.Conv(self.anchors, bias=True, deviation=0.01, name="objectness")
        box = layers.Conv(4 * self.anchors, bias=True, deviation=0.01, name="deltas")
        logits, deltas = [], []
        for x in features:
            for conv in convs:
                x = jax.nn.relu(conv(x))
            logits.append(objectness(x).astype(jnp.float32).reshape(x.shape[0], -1))
            deltas.append(box(x).astype(jnp.float32).reshape(x.shape[0], -1, 4))
        return logits, deltas


def propose(
    logits: Sequence[Array],
    deltas: Sequence[Array],
    anchors: Sequence[Array],
    size: Array,
    *,
    before: int,
    after: int,
    iou_threshold: float,
    min_side: float,
    rank_by: str,
) -> tuple[Array, Array, Array]:
    """The best boxes of one image.

    Of each level the ``before`` best anchors, decoded and clipped to the image; those with a side below ``min_side``
    (or of no extent) are left out, the rest thinned by suppression within the level; of all levels the ``after`` best.

    Args:
        logits, deltas, anchors: of each level, f32[n], f32[n, 4], f32[n, 4].
        size: f32[2], rows and columns of the image.
        before, after, iou_threshold, min_side: see above.
        rank_by: "logit", or "score": its sigmoid, whose float32 values tie where the logit is large (torchvision).
    Returns:
        (boxes f32[P, 4], scores f32[P] (sigmoids), valid bool[P]), best first, P = after or fewer where there are
        fewer anchors; rows that only fill up are zeros. Nothing is differentiated.
    """
    best = []
    for number, (logit, delta, anchor) in enumerate(zip(logits, deltas, anchors, strict=True)):
        logit, index = jax.lax.top_k(jax.lax.stop_gradient(logit), min(before, logit.shape[0]))
        best.append((logit, jax.lax.stop_gradient(delta)[index], anchor[index], jnp.full_like(index, number)))
    logit, delta, anchor, level = (jnp.concatenate(parts) for parts in zip(*best, strict=True))
    boxes = ops.clip_boxes(ops.decode_boxes(delta, anchor), size)
    rank = jax.nn.sigmoid(logit) if rank_by == "score" else logit
    valid = long_enough(boxes, min_side) & long_enough(boxes, TINY) & jnp.isfinite(rank)
    # All levels in one pass, which ends as soon as enough are kept.
    kept, valid = ops.batched_nms(
        boxes, rank, level, iou_threshold=iou_threshold, max_outputs=min(after, len(rank)), valid=valid
    )
    boxes, logit = boxes[kept], logit[kept]
    return jnp.where(valid[:, None], boxes, 0.0), jnp.where(valid, jax.nn.sigmoid(logit), 0.0), valid


def long_enough(boxes: Array, min_side: float) -> Array:
    """bool[...]: whether both sides of boxes [..., 4] are at least ``min_side``; False where a corner is not finite."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return jnp.all((sides >= min_side) & jnp.isfinite(sides), axis=-1)


def best_of_batch(scores: Array, valid: Array, count: int, axis_name: str | None) -> Array:
    """bool[B, P]: those proposals that are among the ``count`` best of the batch, on all devices (ties stay).

    Source: FPN_POST_NMS_PER_BATCH of https://github.com/facebookresearch/maskrcnn-benchmark.
    """
    ranked = jnp.where(valid, scores, -jnp.inf)
    everyone = ranked if axis_name is None else jax.lax.all_gather(ranked, axis_name)
    least = jax.lax.top_k(everyone.ravel(), min(count, everyone.size))[0][-1]
    return valid & (ranked >= least)


def anchors_of(
    shapes: Sequence[tuple[int, int]],
    padded: tuple[int, int],
    strides: Sequence[int],
    *,
    inferred: bool,
    sizes: Sequence[tuple[float, ...]],
    aspect_ratios: tuple[float, ...],
    rounded: bool,
) -> list[Array]:
    """The anchors of every level.

    Args:
        shapes: rows and columns of each level.
        padded: of the image that they come from.
        strides: of each level.
        inferred: torchvision's strides in place of these: padded // shape.
        sizes: of each level.
        aspect_ratios, rounded: as in ``ops.anchors``.
    Returns:
        f32[h w A, 4] of each level.
    """
    if inferred:
        strides = [tuple(whole // part for whole, part in zip(padded, shape, strict=True)) for shape in shapes]
    return [
        ops.anchors(shape, stride, size=size, aspect_ratios=aspect_ratios, rounded=rounded)
        for shape, stride, size in zip(shapes, strides, sizes, strict=True)
    ]
