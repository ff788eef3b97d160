"""Non-maximum suppression: of boxes that overlap, the best one stays."""

import jax
import jax.numpy as jnp

from segjax.ops.boxes import overlap
from segjax.types import Array


def nms(
    boxes: Array, scores: Array, *, iou_threshold: float, max_outputs: int, valid: Array | None = None
) -> tuple[Array, Array]:
    """Goes through boxes from the best score down and keeps each that overlaps no kept one by more than the threshold.

    A box whose IoU equals the threshold (both float32) stays. Equal scores: the lower index first; NaN comes before
    every number, as torch sorts. Boxes without area have IoU NaN among themselves, and stay.

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
    boxes, scores = jax.lax.stop_gradient((jnp.asarray(boxes), jnp.asarray(scores)))
    order = jnp.argsort(scores, descending=True, stable=True)
    boxes = boxes[order]
    corners = tuple(boxes[:, i] for i in range(4))
    above = overlap([c[:, None] for c in corners], [c[None, :] for c in corners]) > iou_threshold
    if classes is not None:
        classes = jnp.asarray(classes)[order]
        above &= classes[:, None] == classes[None, :]
    place = jnp.arange(n)
    above &= place[None, :] < place[:, None]
    alive = jnp.ones(n, bool) if valid is None else jnp.asarray(valid)[order]
    keep = _fixpoint(above, alive)
    kept = jnp.nonzero(keep, size=max_outputs, fill_value=n)[0]
    found = kept < n
    return jnp.where(found, order[jnp.minimum(kept, n - 1)], 0).astype(jnp.int32), found


def _fixpoint(above, alive):
    """keep[i] = alive[i] and no j < i with keep[j] and above[i, j]: after k rounds the first k are right."""

    def step(state):
        keep, _ = state
        new = alive & ~jnp.any(above & keep[None, :], axis=1)
        return new, jnp.any(new != keep)

    return jax.lax.while_loop(lambda state: state[1], step, (alive, jnp.array(True)))[0]
