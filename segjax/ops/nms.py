"""Non-maximum suppression: of boxes that overlap, the best one stays."""

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops.boxes import overlap, wide
from segjax.types import Array

_TILE = 256  # boxes


def nms(
    boxes: Array, scores: Array, *, iou_threshold: float, max_outputs: int, valid: Array | None = None
) -> tuple[Array, Array]:
    """Goes through boxes from the best score down and keeps each that overlaps no kept one by more than the threshold.

    A box whose IoU (float32) equals the threshold or is less stays. Equal scores: the lower index first; NaN comes
    before every number, as torch sorts. Boxes without area have IoU NaN among themselves, and stay.

    Args:
        boxes: f32[N, 4].
        scores: f32[N].
        iou_threshold: the largest IoU of two kept boxes.
        max_outputs: rows of the result; the best of the kept boxes if there are more.
        valid: bool[N], False for boxes that are neither kept nor suppress any.

    Returns:
        (indices i32[max_outputs] of kept boxes, best first; valid bool[max_outputs]: False for rows that only fill up,
        with index 0).

    Raises:
        ValueError: shapes that differ, or max_outputs below 0.

    Source:
        torchvision.ops.nms.
    """
    return _select(boxes, scores, None, iou_threshold, max_outputs, valid)


def batched_nms(
    boxes: Array,
    scores: Array,
    classes: Array,
    *,
    iou_threshold: float,
    max_outputs: int,
    valid: Array | None = None,
) -> tuple[Array, Array]:
    """`nms` of each class by itself, in one pass; only boxes of one class suppress each other.

    Args:
        boxes: f32[N, 4], any coordinates.
        scores: f32[N].
        classes: integers [N].
        iou_threshold: as in `nms`.
        max_outputs: as in `nms`, of all classes together.
        valid: as in `nms`.

    Returns:
        as `nms`, best first over all classes.

    Raises:
        ValueError: shapes that differ, or max_outputs below 0.
    """
    return _select(boxes, scores, classes, iou_threshold, max_outputs, valid)


def _select(boxes, scores, classes, iou_threshold, max_outputs, valid):
    n = boxes.shape[0]
    shapes = [a.shape for a in (scores, classes, valid) if a is not None]
    if boxes.ndim != 2 or boxes.shape[1] != 4 or any(shape != (n,) for shape in shapes):
        raise ValueError(f"boxes {boxes.shape} with {shapes}: expected [N, 4] and [N]")
    if max_outputs < 0:
        raise ValueError(f"max_outputs={max_outputs}: expected 0 or more")
    if n == 0 or max_outputs == 0:
        return jnp.zeros(max_outputs, jnp.int32), jnp.zeros(max_outputs, bool)
    boxes, scores = jax.lax.stop_gradient((wide(boxes), jnp.asarray(scores)))
    valid = jnp.ones(n, bool) if valid is None else jnp.asarray(valid, bool)
    place = jnp.arange(n, dtype=jnp.int32)
    order = jax.lax.sort((~valid, ~jnp.isnan(scores), -scores, place), num_keys=3, is_stable=True)[-1]
    tile = min(_TILE, n)
    order = jnp.pad(order, (0, -n % tile))
    columns = [*(boxes[:, i][order] for i in range(4)), order]
    if classes is not None:
        columns.append(jnp.asarray(classes)[order])
    # An IoU is above the number given if it is above the largest float32 that is not: 0.3 would be rounded up.
    threshold = np.float32(iou_threshold)
    threshold = np.nextafter(threshold, np.float32(-np.inf)) if float(threshold) > iou_threshold else threshold
    return _greedy(columns, jnp.sum(valid), threshold, max_outputs, tile)


def _greedy(columns, number, iou_threshold, most, tile):
    """Tiles from the best score down, until `number` boxes have been seen or `most` are kept.

    Columns are x0, y0, x1, y1, index and perhaps class, best first. Kept boxes are written one after another; a tile
    is compared with those kept before, a tile of them at a time, and then settled by itself.
    """

    def above(a, b):
        over = overlap([c[:, None] for c in a[:4]], [c[None, :] for c in b[:4]]) > iou_threshold
        return over & (a[5][:, None] == b[5][None, :]) if len(a) > 5 else over

    def at(arrays, start):
        return [jax.lax.dynamic_slice_in_dim(c, start, tile) for c in arrays]

    def step(state):
        k, count, kept = state
        mine = at(columns, k * tile)

        def against(block, alive):
            there = block * tile + place < count
            return alive & ~jnp.any(above(mine, at(kept, block * tile)) & there[None, :], axis=1)

        alive = jax.lax.fori_loop(0, (count + tile - 1) // tile, against, k * tile + place < number)
        keep = _settled(above(mine, mine) & (place[None, :] < place[:, None]), alive)
        first = jnp.argsort(~keep, stable=True)
        kept = [jax.lax.dynamic_update_slice_in_dim(c, m[first], count, 0) for c, m in zip(kept, mine, strict=True)]
        return k + 1, count + jnp.sum(keep, dtype=jnp.int32), kept

    def unfinished(state):
        return (state[0] * tile < number) & (state[1] < most)

    place = jnp.arange(tile, dtype=jnp.int32)
    # Room for whole tiles: the last one may be written from any place below `most` on, and is read in blocks.
    room = -(-most // tile) * tile + tile
    kept = [jnp.zeros(room, c.dtype) for c in columns]
    _, count, kept = jax.lax.while_loop(unfinished, step, (jnp.int32(0), jnp.int32(0), kept))
    found = jnp.arange(most) < count
    return jnp.where(found, kept[4][:most], 0), found


def _settled(above, alive):
    """keep[i] = alive[i] and no j < i with keep[j] and above[i, j]: after k rounds the first k are right."""

    def step(state):
        keep, _ = state
        new = alive & ~jnp.any(above & keep[None, :], axis=1)
        return new, jnp.any(new != keep)

    return jax.lax.while_loop(lambda state: state[1], step, (alive, jnp.array(True)))[0]
