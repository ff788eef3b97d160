"""Focal loss, one class against all others: easy pixels count for less.

With m_i the weight of pixel i (0 where it is ignored), z_ic its logit and s_ic = z_ic for its own class, -z_ic for the
others, p = sigmoid(s):

    f_ic = a_ic (1 - p)^gamma (-log p),   a_ic = alpha for its own class, 1 - alpha for the others; 1 without alpha
    sum = sum_i m_i (mean over c of f_ic)        weight = sum_i m_i

These are sigmoids of single logits, as in segmentation_models_pytorch, not a softmax.
"""

import jax
import jax.numpy as jnp

from segjax.losses import _pixels
from segjax.types import Array, Batch, Outputs

_EPS = 1e-6  # least divisor under ``normalized``; segmentation_models_pytorch's


def loss(
    outputs: Outputs,
    batch: Batch,
    *,
    num_classes: int,
    ignore_label: int,
    axis_name: str | None = None,
    alpha: float | None = None,
    gamma: float = 2.0,
    normalized: bool = False,
    class_weights: tuple[float, ...] | None = None,
) -> dict[str, tuple[Array, Array]]:
    """Focal loss over the pixels that count.

    Args:
      outputs: "logits" f32[B, H, W, K].
      batch: "label" integers [B, H, W]; optional "valid" bool[B] and "weight" f32[B, H, W].
      num_classes: K.
      ignore_label: label that counts nowhere.
      axis_name: of the devices that hold parts of the batch; read by ``normalized`` alone.
      alpha: weight of a pixel's own class, in [0, 1]; None: no weights.
      gamma: how much easy pixels lose; 0: binary cross entropy.
      normalized: each class is divided by its sum_i m_i (1 - p)^gamma over the whole batch, so that confident pixels do
        not shrink the loss; the gradient passes through the divisor.
      class_weights: one factor per class of the mean, which is divided by their sum; None (or none at all): ones.
    Returns:
      {"focal": (sum, weight)}; both 0 where no pixel counts. With ``normalized`` the loss of the whole batch with
      weight 1 / devices.
    Raises:
      ValueError: shapes or options that do not fit.
    Source: Lin et al. 2017, https://arxiv.org/abs/1708.02002, equations 4 and 5; normalized: Yun et al. 2019,
    https://arxiv.org/abs/1909.07829; segmentation_models_pytorch's FocalLoss.
    """
    if not gamma >= 0 or not (alpha is None or 0 <= alpha <= 1):
        raise ValueError(f"alpha and gamma are {alpha} and {gamma}, expected [0, 1] or None, and at least 0")
    pixels = _pixels.read(outputs, batch, num_classes, ignore_label)
    part = _pixels.chosen(class_weights, num_classes, "class_weights")
    part = jnp.ones(num_classes) if part is None else part
    part = part / jnp.maximum(part.sum(), _EPS)
    logits, is_label, mass = pixels.safe_logits(), pixels.is_label(), pixels.mass()
    own = jnp.where(is_label, logits, -logits)
    focus = jnp.exp(-gamma * jax.nn.softplus(own))  # (1 - p)^gamma, smooth everywhere
    value = focus * jax.nn.softplus(-own)
    if alpha is not None:
        value = value * jnp.where(is_label, alpha, 1.0 - alpha)
    wide = jnp.broadcast_to(mass[..., None], value.shape)
    # In two stages, so that a long sum in float32 does not swallow its small terms.
    per_class = (value * wide).sum(axis=(1, 2)).sum(axis=0)
    weight = mass.sum(axis=(1, 2)).sum()
    if not normalized:
        return {"focal": ((per_class * part).sum(), weight)}
    focused = (focus * wide).sum(axis=(1, 2)).sum(axis=0)
    per_class, focused, weight = _pixels.total((per_class, focused, weight), axis_name)
    mean = (per_class / jnp.maximum(focused, _EPS) * part).sum() / jnp.where(weight > 0, weight, 1.0)
    return {"focal": _pixels.share(mean, weight > 0, axis_name)}


def additive(*, normalized: bool = False, **_: object) -> bool:
    """Whether the sums of parts of a batch add up to those of the whole: unless ``normalized`` divides by another."""
    return not normalized
