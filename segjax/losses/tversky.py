"""Tversky loss: a ratio of soft counts of the whole batch, of which Dice and Jaccard are two cases.

With m_i the weight of pixel i (0 where it is ignored), q_ic its softmax and t_ic its label (1 or 0), for class c

    TP = sum_i m_i t_ic q_ic     FP = sum_i m_i q_ic - TP     FN = sum_i m_i t_ic - TP
    score = (TP + smooth) / (TP + alpha FP + beta FN + smooth)
    loss_c = 1 - score, or -log(score); 0 for a class that no counted pixel has

    loss = (mean over c of loss_c) ^ gamma

A class without pixels adds 0 and still counts in the mean, as in segmentation_models_pytorch. The counts are those of
all devices; the loss of the whole is no sum of those of its parts.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from segjax.losses import _pixels
from segjax.types import Array, Batch, Outputs

_EPS = 1e-7  # least denominator, and least score under log_loss; segmentation_models_pytorch's


def loss(
    outputs: Outputs,
    batch: Batch,
    *,
    num_classes: int,
    ignore_label: int,
    axis_name: str | None = None,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    smooth: float = 0.0,
    log_loss: bool = False,
    classes: Sequence[int] | None = None,
    class_weights: tuple[float, ...] | None = None,
) -> dict[str, tuple[Array, Array]]:
    """Tversky loss of the whole batch.

    Args:
      outputs: "logits" f32[B, H, W, K].
      batch: "label" integers [B, H, W]; optional "valid" bool[B] and "weight" f32[B, H, W].
      num_classes: K.
      ignore_label: label that counts nowhere.
      axis_name: of the devices that hold parts of the batch, or None.
      alpha: the price of false positives.
      beta: the price of false negatives.
      gamma: exponent of the mean (Focal Tversky).
      smooth: added to numerator and denominator.
      log_loss: -log(score) in place of 1 - score.
      classes: those that enter the mean; None (or none at all): every class.
      class_weights: one factor per class of the mean, which is divided by their sum; None (or none at all): ones.
    Returns:
      {"tversky": (sum, weight)}: the weights of all devices add up to 1; both 0 where no pixel counts.
    Raises:
      ValueError: shapes or options that do not fit.
    Source: Salehi et al. 2017, https://arxiv.org/abs/1706.05721, equation 4; segmentation_models_pytorch's TverskyLoss.
    """
    if not (alpha >= 0 and beta >= 0 and gamma > 0):
        raise ValueError(f"alpha, beta, gamma are {alpha}, {beta}, {gamma}, expected at least 0, 0 and above 0")
    pixels = _pixels.read(outputs, batch, num_classes, ignore_label)
    part = _part(num_classes, classes, class_weights)
    hit, predicted, present = _pixels.total(_counts(pixels), axis_name)
    denominator = hit + alpha * (predicted - hit) + beta * (present - hit) + smooth
    score = (hit + smooth) / jnp.maximum(denominator, _EPS)
    per_class = -jnp.log(jnp.maximum(score, _EPS)) if log_loss else 1.0 - score
    mean = (jnp.where(present > 0, per_class, 0.0) * part).sum()
    value = mean if gamma == 1 else jnp.where(mean > 0, jnp.where(mean > 0, mean, 1.0) ** gamma, 0.0)
    return {"tversky": _pixels.share(value, present.sum() > 0, axis_name)}


def additive(**_: object) -> bool:
    """Whether the sums of parts of a batch add up to those of the whole: never."""
    return False


def _counts(pixels: _pixels.Pixels) -> tuple[Array, Array, Array]:
    """(TP, sum of m q, sum of m t), each f32[K]."""
    mass = jnp.broadcast_to(pixels.mass()[..., None], pixels.logits.shape)
    predicted = jax.nn.softmax(pixels.safe_logits()) * mass
    is_label = pixels.is_label()
    # In two stages, so that a long sum in float32 does not swallow its small terms.
    tables = jnp.where(is_label, predicted, 0.0), predicted, jnp.where(is_label, mass, 0.0)
    return tuple(table.sum(axis=(1, 2)).sum(axis=0) for table in tables)


def _part(num_classes: int, classes: Sequence[int] | None, class_weights: Sequence[float] | None) -> Array:
    """f32[K]: how much of the mean each class is; they add up to 1."""
    part = _pixels.chosen(class_weights, num_classes, "class_weights")
    part = jnp.ones(num_classes) if part is None else part
    if classes is not None and len(classes):
        if not all(0 <= c < num_classes for c in classes) or len(set(classes)) < len(classes):
            raise ValueError(f"classes is {tuple(classes)}, expected different ids from 0 to {num_classes - 1}")
        part = part * jnp.zeros(num_classes).at[jnp.asarray(classes)].set(1.0)
    return part / jnp.maximum(part.sum(), _EPS)
