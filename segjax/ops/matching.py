"""Which truth an anchor or a proposal stands for, and a balanced sample of them."""

import jax
import jax.numpy as jnp

from segjax.ops.boxes import box_area, box_iou
from segjax.types import Array

_BLOCK = 8  # truths that boxes are compared with at a time


def match(
    iou: Array, *, truth_valid: Array, foreground: float, background: float, low_quality: bool = False
) -> tuple[Array, Array]:
    """Gives every anchor the truth that it overlaps most, and says whether that is enough.

    With `low_quality` the anchors that overlap a truth most, all among ties, become foreground too, however little
    that is (a truth that overlaps no anchor at all thus takes every anchor that overlaps it by 0); each keeps the truth
    that it overlaps most itself, which may be another.

    Args:
        iou: f32[N, M], anchors by truths; NaN counts as 0.
        truth_valid: bool[M]; False for rows that only fill up: they match nothing.
        foreground: the least IoU of a foreground anchor.
        background: a background anchor's is below this.
        low_quality: whether the best anchors of every truth are foreground.

    Returns:
        (index i32[N] of the truth, the first among ties, 0 where there is none; label i32[N]: 1 foreground,
        0 background, -1 neither).

    Raises:
        ValueError: background above foreground, or shapes that differ.

    Source:
        Ren et al. 2015, Faster R-CNN, section 3.1.2, https://arxiv.org/abs/1506.01497; torchvision's and detectron2's
        Matcher.
    """
    if background > foreground:
        raise ValueError(f"background={background} above foreground={foreground}: expected at most that")
    if iou.ndim != 2 or truth_valid.shape != iou.shape[1:]:
        raise ValueError(f"iou {iou.shape} and truth_valid {truth_valid.shape}: expected [N, M] and [M]")
    if iou.shape[1] == 0:
        return jnp.zeros(iou.shape[0], jnp.int32), jnp.zeros(iou.shape[0], jnp.int32)
    iou = jnp.where(truth_valid[None, :], jnp.nan_to_num(iou, nan=0.0), -1)
    best, index = jnp.max(iou, axis=1), jnp.argmax(iou, axis=1).astype(jnp.int32)
    label = jnp.where(best >= foreground, 1, jnp.where(best < background, 0, -1))
    if low_quality:
        most = jnp.max(iou, axis=0, initial=-1)
        label = jnp.where(jnp.any((iou == most[None, :]) & truth_valid[None, :], axis=1), 1, label)
    return index, label.astype(jnp.int32)


def match_boxes(
    boxes: Array, truths: Array, *, truth_valid: Array, foreground: float, background: float, low_quality: bool = False
) -> tuple[Array, Array]:
    """`match` of `box_iou(boxes, truths)`, never in memory as a whole; rows behind the last truth cost nothing.

    Args:
        boxes: f32[N, 4].
        truths: f32[M, 4].
        truth_valid, foreground, background, low_quality: as in `match`.

    Returns:
        as `match`.

    Raises:
        ValueError: as `match`.
    """
    if background > foreground:
        raise ValueError(f"background={background} above foreground={foreground}: expected at most that")
    if truth_valid.shape != truths.shape[:1]:
        raise ValueError(f"truths {truths.shape} and truth_valid {truth_valid.shape}: expected [M, 4] and [M]")
    truths, truth_valid = _whole_blocks(truths), _whole_blocks(jnp.asarray(truth_valid, bool))

    def overlap(k):
        here, valid = _block(truths, k), _block(truth_valid, k)[:, None]
        return jnp.where(valid, jnp.nan_to_num(box_iou(here, boxes), nan=0.0), -1), valid

    def nearest(k, state):
        best, index, most = state
        iou, _ = overlap(k)
        for row in range(_BLOCK):
            nearer = iou[row] > best
            best, index = jnp.where(nearer, iou[row], best), jnp.where(nearer, k * _BLOCK + row, index)
        most = jax.lax.dynamic_update_slice(most, jnp.max(iou, axis=1, initial=-1), (k * _BLOCK,))
        return best, index, most

    def is_best(k, found):
        iou, valid = overlap(k)
        return found | jnp.any((iou == _block(most, k)[:, None]) & valid, axis=0)

    none = jnp.full(len(boxes), -1.0), jnp.zeros(len(boxes), jnp.int32), jnp.full(len(truths), -1.0)
    best, index, most = _for_blocks(truth_valid, nearest, none)
    label = jnp.where(best >= foreground, 1, jnp.where(best < background, 0, -1))
    if low_quality:
        label = jnp.where(_for_blocks(truth_valid, is_best, jnp.zeros(len(boxes), bool)), 1, label)
    return index, label.astype(jnp.int32)


def covered(boxes: Array, regions: Array, *, valid: Array, share: float) -> Array:
    """Says of which boxes at least a share of the area lies in one of the regions.

    Args:
        boxes: f32[N, 4].
        regions: f32[M, 4].
        valid: bool[M], regions that count; rows behind the last of them cost nothing.
        share: in (0, 1].

    Returns:
        bool[N]; False for boxes without area.
    """
    regions, valid, area = _whole_blocks(regions), _whole_blocks(valid), box_area(boxes)[None]

    def cover(k, found):
        here = _block(regions, k)
        iou = box_iou(here, boxes)
        # intersection = iou (a + b) / (1 + iou), from iou = intersection / (a + b - intersection)
        intersection = iou * (area + box_area(here)[:, None]) / (1 + iou)
        return found | jnp.any(_block(valid, k)[:, None] & (intersection >= share * area) & (area > 0), axis=0)

    return _for_blocks(valid, cover, jnp.zeros(len(boxes), bool))


def _whole_blocks(rows):
    return jnp.pad(rows, ((0, -len(rows) % _BLOCK), *((0, 0),) * (rows.ndim - 1)))


def _block(rows, k):
    return jax.lax.dynamic_slice_in_dim(rows, k * _BLOCK, _BLOCK)


def _for_blocks(valid, body, start):
    """A loop over the blocks of rows up to the last that is valid."""
    last = jnp.max(jnp.where(valid, jnp.arange(len(valid)), -1), initial=-1)
    return jax.lax.fori_loop(0, last // _BLOCK + 1, body, start) if len(valid) else start


def sample_balanced(key: Array, label: Array, *, count: int, positive_fraction: float) -> tuple[Array, Array]:
    """Draws up to `count` anchors, uniformly without replacement, at most a fraction of them foreground.

    Background fills the places that foreground leaves; foreground never fills those of background.

    Args:
        key: a PRNG key.
        label: i32[N], as `match` gives: 1 foreground, 0 background, -1 never drawn.
        count: how many to draw.
        positive_fraction: of `count`, rounded down: the most foreground.

    Returns:
        (index i32[count], valid bool[count]): foreground first, then background, then rows that only fill up (index 0).

    Raises:
        ValueError: count below 0 or a fraction outside [0, 1].

    Source:
        torchvision's BalancedPositiveNegativeSampler, detectron2's subsample_labels.
    """
    if count < 0 or not 0 <= positive_fraction <= 1:
        raise ValueError(
            f"count={count}, positive_fraction={positive_fraction}: expected count >= 0 and a fraction in [0, 1]"
        )
    draw = jax.random.uniform(key, label.shape)

    def drawn(wanted: Array, most: int) -> tuple[Array, Array]:
        most = min(most, label.shape[0])
        index = jax.lax.top_k(jnp.where(wanted, draw, -1), most)[1] if most else jnp.zeros(0, jnp.int32)
        index = jnp.concatenate([index, jnp.zeros(count + 1 - most, jnp.int32)])  # one to read where none is drawn
        return index, jnp.minimum(jnp.sum(wanted, dtype=jnp.int32), most)

    positive, positives = drawn(label == 1, int(count * positive_fraction))
    negative, negatives = drawn(label == 0, count)
    place = jnp.arange(count)
    end = jnp.minimum(positives + negatives, count)
    index = jnp.where(place < positives, positive[place], negative[jnp.maximum(place - positives, 0)])
    return jnp.where(place < end, index, 0), place < end
