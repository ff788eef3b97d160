"""The scores of one confusion matrix as five well-known programs report them: they differ where classes are absent.

With t = hits, s = pixels of the class in the labels, p = in the predictions, of a class

    convention      IoU of a class in neither   predicted only   mean IoU over     mean accuracy over   pixel accuracy
    "segjax"        by ``absent``: see confusion.compute
    "fcn"           left out                    0                the others        classes with s > 0   sum t / sum s
    "torchvision"   NaN                         0                all: NaN if any   all: NaN if any      sum t / sum s
    "mmsegmentation"  as "fcn"; all in percent with two decimals, so rounded here to four
    "detectron2"    left out                    left out         s > 0             s > 0                sum t / sum s'
    "segnet"        0                           0                all K             all K                sum t / sum s

s' leaves out pixels that were given something outside [0, K). detectron2 and SegNet also take s' for s in IoU and
accuracy of a class, since they cut that column off; everywhere else such a pixel is a miss. The IoU is t / (s + p - t).

Sources: fcn: score.py of Shelhamer et al.'s fcn.berkeleyvision.org; torchvision: ConfusionMatrix of
references/segmentation/utils.py; mmsegmentation: IoUMetric (mmseg/evaluation/metrics/iou_metric.py); detectron2:
SemSegEvaluator (evaluation/sem_seg_evaluation.py); SegNet: Scripts/compute_test_results.m of SegNet-Tutorial.
"""

from typing import Any

import numpy as np

from segjax.metrics import confusion
from segjax.types import HostArray

CONVENTIONS = ("segjax", "fcn", "torchvision", "mmsegmentation", "detectron2", "segnet")
_DECIMALS = 4  # of a fraction whose percentage has two
_MEANS = (("miou", "iou"), ("mean_accuracy", "accuracy"), ("mean_dice", "dice"))


def compute(counts: confusion.Counts, *, convention: str = "segjax", absent: str = "skip") -> dict[str, Any]:
    """Scores of a confusion matrix by a named convention, on the host in float64.

    What a program does not report (Dice of all but mmsegmentation, fwiou of torchvision and SegNet) follows its rules
    for classes. Where nothing was counted every mean is NaN, whatever the convention.

    Args:
      counts: of ``confusion.update`` or ``merge``.
      convention: one of ``CONVENTIONS``.
      absent: the policy of ``confusion.compute`` under "segjax"; the others have their own.
    Returns:
      the keys of ``confusion.compute``.
    Raises:
      ValueError: unknown convention or policy.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention is {convention!r}, expected one of {', '.join(CONVENTIONS)}")
    scores = confusion.compute(counts, absent=absent)
    if convention == "segjax":
        return scores
    table = confusion.matrix(counts)
    num_classes = table.shape[0]
    inside = table[:, :num_classes]
    cut = convention in ("detectron2", "segnet")
    support, predicted, hits = (inside if cut else table).sum(axis=1), inside.sum(axis=0), inside.diagonal()
    iou = _ratio(hits, support + predicted - hits)
    accuracy, dice = _ratio(hits, support), _ratio(2 * hits, support + predicted)
    if cut:  # a class that no label has
        gone = 0.0 if convention == "segnet" else np.nan
        iou, accuracy, dice = (np.where(support > 0, values, gone) for values in (iou, accuracy, dice))
    counted = support if convention == "detectron2" else table
    found = {
        "iou": iou,
        "accuracy": accuracy,
        "dice": dice,
        "pixel_accuracy": hits.sum() / max(counted.sum(), 1),
        "fwiou": np.where(support > 0, support * iou, 0.0).sum() / max(support.sum(), 1),
    }
    strict = convention in ("torchvision", "segnet")
    found |= {
        mean: values.mean() if strict else _mean_of_some(values) for mean, key in _MEANS for values in [found[key]]
    }
    if convention == "mmsegmentation":
        found = {key: value if key == "fwiou" else np.round(value, _DECIMALS) for key, value in found.items()}
    if not table.sum():
        found |= {key: np.float64(np.nan) for key in ("miou", "mean_accuracy", "mean_dice", "pixel_accuracy", "fwiou")}
    return scores | found


def _ratio(numerator: HostArray, denominator: HostArray) -> HostArray:
    """f64[K], NaN for 0 / 0."""
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), np.nan)


def _mean_of_some(values: HostArray) -> np.float64:
    some = values[~np.isnan(values)]
    return some.mean() if some.size else np.float64(np.nan)
