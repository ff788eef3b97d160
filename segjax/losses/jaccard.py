"""Jaccard loss: one minus TP / (TP + FP + FN) of soft counts, mean over classes: ``tversky``, alpha = beta = 1."""

from collections.abc import Sequence

from segjax.losses import tversky
from segjax.types import Array, Batch, Outputs


def loss(
    outputs: Outputs,
    batch: Batch,
    *,
    num_classes: int,
    ignore_label: int,
    axis_name: str | None = None,
    smooth: float = 0.0,
    log_loss: bool = False,
    classes: Sequence[int] | None = None,
    class_weights: tuple[float, ...] | None = None,
) -> dict[str, tuple[Array, Array]]:
    """Jaccard loss of the whole batch.

    Args:
      outputs: "logits" f32[B, H, W, K].
      batch: "label" integers [B, H, W]; optional "valid" bool[B] and "weight" f32[B, H, W].
      num_classes: K.
      ignore_label: label that counts nowhere.
      axis_name: of the devices that hold parts of the batch, or None.
      smooth, log_loss, classes, class_weights: as ``tversky.loss``; smooth is added to TP and to its denominator.
    Returns:
      {"jaccard": (sum, weight)}: the weights of all devices add up to 1; both 0 where no pixel counts.
    Raises:
      ValueError: shapes or options that do not fit.
    Source: Rahman & Wang 2016, section 2; segmentation_models_pytorch's JaccardLoss.
    """
    terms = tversky.loss(
        outputs,
        batch,
        num_classes=num_classes,
        ignore_label=ignore_label,
        axis_name=axis_name,
        alpha=1.0,
        beta=1.0,
        smooth=smooth,
        log_loss=log_loss,
        classes=classes,
        class_weights=class_weights,
    )
    return {"jaccard": terms["tversky"]}


def additive(**_: object) -> bool:
    """Whether the sums of parts of a batch add up to those of the whole: never."""
    return False
