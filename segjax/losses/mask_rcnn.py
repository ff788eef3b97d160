"""The five losses of Mask R-CNN: of the region proposals, of the box head, of the mask head.

    rpn_objectness   sum over sampled anchors of BCE(logit, is an object)             / n
    rpn_box          sum over those that are objects, and 4 numbers, of s(delta - t)  / n
    classification   sum over sampled regions of -log softmax(logits)[class]          / m
    box              sum over those that are objects, and 4 numbers, of s(delta - t)  / m
    mask             sum over those, and their pixels, of BCE(logit of the class, t)  / pixels

s(d) = d^2 / (2 beta) where |d| < beta, else |d| - beta / 2; beta = 0 is |d|. n counts the sampled anchors or is fixed,
m counts the sampled regions; where the box terms have no object they are 0 with a weight, and the mask term's weight is
0. Which anchors and regions these are, beta and n are in the model's outputs, by its options.

Source: He et al. 2017, section 3, https://arxiv.org/abs/1703.06870; Girshick 2015 (Fast R-CNN), equations 1 to 3,
https://arxiv.org/abs/1504.08083.
"""

import jax
import jax.numpy as jnp

from segjax.types import Array, Batch, Outputs

TERMS = ("rpn_objectness", "rpn_box", "classification", "box", "mask")


def loss(
    outputs: Outputs,
    batch: Batch,
    *,
    num_classes: int,
    ignore_label: int,
    axis_name: str | None = None,
    rpn_objectness_weight: float = 1.0,
    rpn_box_weight: float = 1.0,
    classification_weight: float = 1.0,
    box_weight: float = 1.0,
    mask_weight: float = 1.0,
) -> dict[str, tuple[Array, Array]]:
    """The losses of a batch.

    Args:
      outputs: of ``models.mask_rcnn`` in training, for S anchors (the first Q of them may be objects) and R regions
        (the first P): "rpn_logits", "rpn_labels", "rpn_weight" f32[B, S]; "rpn_normalizer", "box_beta" f32[B];
        "rpn_deltas", "rpn_targets" f32[B, Q, 4], "rpn_positive" f32[B, Q]; "class_logits" f32[B, R, K + 1],
        "class_columns" i32[B, R], "class_weight" f32[B, R]; "box_deltas", "box_targets" f32[B, P, 4], "box_positive"
        f32[B, P]; "mask_logits", "mask_targets" f32[B, P, m, m].
      batch: not used: the model has sampled by it.
      num_classes: K.
      ignore_label: not used.
      axis_name: not used: parts of a batch add up.
      rpn_objectness_weight, rpn_box_weight, classification_weight, box_weight, mask_weight: factors of the sums.
    Returns:
      {"rpn_objectness", "rpn_box", "classification", "box", "mask": (sum, weight)}.
    Raises:
      ValueError: logits that do not fit the number of classes, or a factor below 0.
    """
    del batch, ignore_label, axis_name
    factors = (rpn_objectness_weight, rpn_box_weight, classification_weight, box_weight, mask_weight)
    for term, factor in zip(TERMS, factors, strict=True):
        if not 0 <= factor < float("inf"):
            raise ValueError(f"{term}_weight is {factor}, expected a number of at least 0")
    if outputs["class_logits"].shape[-1] != num_classes + 1:
        raise ValueError(
            f"class_logits have shape {outputs['class_logits'].shape}, expected {num_classes + 1} columns: the "
            "background's and one per class"
        )
    beta = outputs["box_beta"][:, None, None]
    normalizer, regions = outputs["rpn_normalizer"].sum(), outputs["class_weight"].sum()
    mask_pixels = jnp.broadcast_to(outputs["box_positive"][..., None, None], outputs["mask_targets"].shape)
    found = (
        (_sum(_bce(outputs["rpn_logits"], outputs["rpn_labels"]), outputs["rpn_weight"]), normalizer),
        (_boxes(outputs["rpn_deltas"], outputs["rpn_targets"], outputs["rpn_positive"], beta), normalizer),
        (_sum(_cross_entropy(outputs["class_logits"], outputs["class_columns"]), outputs["class_weight"]), regions),
        (_boxes(outputs["box_deltas"], outputs["box_targets"], outputs["box_positive"], beta), regions),
        (_sum(_bce(outputs["mask_logits"], outputs["mask_targets"]), mask_pixels), mask_pixels.sum()),
    )
    scaled = [
        (total if factor == 1 else factor * total, weight)
        for factor, (total, weight) in zip(factors, found, strict=True)
    ]
    return dict(zip(TERMS, scaled, strict=True))


def _sum(values: Array, weight: Array) -> Array:
    """The sum of values where the weight is not 0, in stages, so that a long float32 sum keeps its small terms."""
    values = jnp.where(weight > 0, values, 0.0) * weight
    while values.ndim:
        values = values.sum(axis=-1)
    return values


def _boxes(deltas: Array, targets: Array, positive: Array, beta: Array) -> Array:
    positive = jnp.broadcast_to(positive[..., None], deltas.shape)
    distance = jnp.abs(jnp.where(positive > 0, deltas - targets, 0.0))
    quadratic = 0.5 * jnp.square(distance) / jnp.where(beta > 0, beta, 1.0)
    return _sum(jnp.where(distance < beta, quadratic, distance - 0.5 * beta), positive)


def _bce(logits: Array, target: Array) -> Array:
    """Cross entropy of sigmoids and targets from 0 to 1."""
    logits = logits.astype(jnp.float32)
    return jax.nn.softplus(logits) - logits * target


def _cross_entropy(logits: Array, column: Array) -> Array:
    own = jnp.take_along_axis(logits, column[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - own


def additive(**_: object) -> bool:
    """Whether the sums of parts of a batch add up to those of the whole: they do."""
    return True
