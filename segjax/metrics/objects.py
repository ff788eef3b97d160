"""Scores of objects that microscopists use: found objects per image over thresholds of IoU, and F1.

    counts = empty()
    counts = update(counts, true_labels, predicted_labels)       # one image, label maps or lists of run lengths
    scores = compute(counts)

A predicted and a true object match where their IoU is above the threshold, one to one. Above 1/2 and where objects of
an image do not overlap, matches are unique; where they overlap, as those of a detector may, as many are matched as can
be, and of such matchings the one of the greatest sum of IoU. With TP pairs, FP predicted and FN true objects left over

    score of an image = mean over thresholds of TP / (TP + FP + FN),      score = mean over images

which is what the 2018 Data Science Bowl ranks by (thresholds 0.5, 0.55 ... 0.95), often called mean average precision,
though no precision is averaged over recall. An image without objects, in which none are found, scores 1.

Sources: Caicedo et al. 2019, Nucleus segmentation across imaging experiments, https://doi.org/10.1038/s41592-019-0612-7;
Caicedo et al. 2019, Evaluation of deep learning strategies, https://doi.org/10.1002/cyto.a.23863 (F1).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize

from segjax import rle
from segjax.types import HostArray, InputError

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
DSB_THRESHOLDS = tuple(n / 100 for n in range(50, 100, 5))


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
    """What was found in I images.

    Attributes:
      thresholds: T of them.
      matched: i64[I, T], pairs above each threshold.
      true: i64[I], objects.
      predicted: i64[I].
    """

    thresholds: tuple[float, ...]
    matched: HostArray
    true: HostArray
    predicted: HostArray


def empty(*, thresholds: Sequence[float] = THRESHOLDS) -> Counts:
    """Counts of no images.

    Args:
      thresholds: of IoU, in [0.5, 1).
    Returns:
      Counts.
    Raises:
      ValueError: no thresholds, or one outside [0.5, 1).
    """
    thresholds = tuple(float(t) for t in thresholds)
    if not thresholds or not all(0.5 <= t < 1 for t in thresholds):
        raise ValueError(f"thresholds={thresholds}: expected one or more in [0.5, 1)")
    none = np.zeros(0, np.int64)
    return Counts(thresholds, np.zeros((0, len(thresholds)), np.int64), none, none)


def update(counts: Counts, truth: HostArray | Sequence, prediction: HostArray | Sequence) -> Counts:
    """Counts with one image added.

    Args:
      counts: what was counted before.
      truth: the objects of the image: integers [H, W], 0 where none is, a number per object; or a list of run lengths,
        as ``rle.pack`` takes them, or Masks.
      prediction: as truth, in either form.
    Returns:
      Counts.
    Raises:
      ValueError: sizes differ.
      InputError: run lengths that cannot be read.
    """
    iou = overlaps(truth, prediction)
    matched = np.array([[len(matches(iou, t)[0]) for t in counts.thresholds]], np.int64)
    return merge(counts, Counts(counts.thresholds, matched, np.array([iou.shape[0]]), np.array([iou.shape[1]])))


def merge(a: Counts, b: Counts) -> Counts:
    """Counts of the images of both; ValueError where their thresholds differ."""
    if a.thresholds != b.thresholds:
        raise ValueError(f"counts of thresholds {a.thresholds} and {b.thresholds} cannot be merged")
    arrays = (np.concatenate([getattr(a, name), getattr(b, name)]) for name in ("matched", "true", "predicted"))
    return Counts(a.thresholds, *arrays)


def compute(counts: Counts) -> dict[str, Any]:
    """Scores of all images.

    Args:
      counts: of ``update`` or ``merge``.
    Returns:
      "score": mean over images and thresholds of TP / (TP + FP + FN); "score_per_image" f64[I]; "score_at" f64[T];
      "f1" f64[T] = 2 TP / (2 TP + FP + FN), "precision" f64[T], "recall" f64[T], of the counts of all images together;
      "mean_f1" its mean over thresholds; "f1_per_image" f64[T], the mean over images of their own F1; "tp", "fp", "fn"
      i64[T]; "thresholds", "images". NaN where nothing was counted.
    """
    tp, true, predicted = counts.matched, counts.true[:, None], counts.predicted[:, None]
    union = true + predicted - tp
    per_image = np.where(union > 0, tp / np.maximum(union, 1), 1.0)
    f1_image = np.where(union > 0, 2 * tp / np.maximum(true + predicted, 1), 1.0)
    total, some, found = tp.sum(axis=0), int(true.sum()), int(predicted.sum())
    f1 = _ratio(2 * total, some + found)
    return {
        "score": _mean(per_image.mean(axis=1)),
        "score_per_image": per_image.mean(axis=1),
        "score_at": np.array([_mean(column) for column in per_image.T]),
        "f1": f1,
        "mean_f1": _mean(f1),
        "f1_per_image": np.array([_mean(column) for column in f1_image.T]),
        "precision": _ratio(total, found),
        "recall": _ratio(total, some),
        "tp": total,
        "fp": found - total,
        "fn": some - total,
        "thresholds": counts.thresholds,
        "images": len(tp),
    }


def evaluate(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    min_score: float = 0.5,
) -> dict[str, Any]:
    """Scores COCO results, all classes as one.

    Args:
      ground_truth: as of ``average_precision.evaluate``; crowds are left out.
      detections: COCO's results with "segmentation".
      thresholds: of IoU.
      min_score: detections below it are left out; unlike AP, these scores depend on it, so state it.
    Returns:
      as ``compute``, and "min_score".
    Raises:
      InputError: a detection of no known image, or without a mask or score.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    truths: dict[Any, list] = {key: [] for key in sizes}
    found: dict[Any, list] = {key: [] for key in sizes}
    for annotation in ground_truth["annotations"]:
        if not annotation.get("iscrowd", 0) and annotation["image_id"] in truths:
            truths[annotation["image_id"]].append(annotation["segmentation"])
    for number, detection in enumerate(detections):
        if not {"image_id", "score", "segmentation"} <= {*detection}:
            raise InputError(f'detection number {number} has {sorted(detection)}: expected "image_id", "score", '
                             '"segmentation"')  # fmt: skip
        if detection["image_id"] not in found:
            raise InputError(f"detection number {number} has the image_id {detection['image_id']!r}: no such image")
        if detection["score"] >= min_score:
            found[detection["image_id"]].append(detection["segmentation"])
    counts = empty(thresholds=thresholds)
    for key, size in sizes.items():
        pair = (rle.pack(masks, sizes=np.tile(size, (len(masks), 1))) for masks in (truths[key], found[key]))
        counts = update(counts, *pair)
    return {**compute(counts), "min_score": min_score}


def overlaps(truth: HostArray | Sequence, prediction: HostArray | Sequence) -> HostArray:
    """IoU of every true and predicted object of an image.

    Args:
      truth: as ``update``.
      prediction: as ``update``.
    Returns:
      f64[G, P], objects of a label map in the order of their numbers; empty masks are no objects.
    Raises:
      ValueError: sizes differ.
    """
    if isinstance(truth, np.ndarray) and isinstance(prediction, np.ndarray):
        return _label_overlaps(truth, prediction)
    first, second = (_masks(objects) for objects in (truth, prediction))
    return rle.iou(*(rle.take(masks, np.flatnonzero(rle.area(masks) > 0)) for masks in (first, second)))


def matches(iou: HostArray, threshold: float) -> tuple[HostArray, HostArray]:
    """The pairs above a threshold, one to one: as many as can be, then of the greatest sum of IoU.

    Args:
      iou: f64[G, P].
      threshold: of IoU; a pair at the threshold is none.
    Returns:
      (true objects i64[n], predicted objects i64[n]).
    """
    above = iou > threshold
    g, p = np.nonzero(above)
    if len(np.unique(g)) == len(g) and len(np.unique(p)) == len(p):  # always, where objects do not overlap
        return g, p
    # One more pair outweighs any sum of IoU; only objects in some pair take part.
    rows, columns = np.unique(g), np.unique(p)
    part = np.ix_(rows, columns)
    gain = np.where(above[part], min(len(rows), len(columns)) + 1 + iou[part], 0)
    g, p = optimize.linear_sum_assignment(gain, maximize=True)
    kept = above[part][g, p]
    return rows[g[kept]], columns[p[kept]]


def _label_overlaps(truth: HostArray, prediction: HostArray) -> HostArray:
    if truth.shape != prediction.shape or truth.ndim != 2:
        raise ValueError(f"label maps of shapes {truth.shape} and {prediction.shape}: expected the same [H, W]")
    (true, first), (found, second) = (np.unique(x, return_inverse=True) for x in (truth, prediction))
    table = np.bincount(first.ravel() * len(found) + second.ravel(), minlength=len(true) * len(found))
    table = table.reshape(len(true), len(found))
    union = table.sum(axis=1, keepdims=True) + table.sum(axis=0, keepdims=True) - table
    return (table / np.maximum(union, 1))[true != 0][:, found != 0]


def _masks(objects: HostArray | Sequence | rle.Masks) -> rle.Masks:
    if isinstance(objects, np.ndarray):
        return rle.pack([rle.encode(objects == number) for number in np.unique(objects) if number])
    return objects if isinstance(objects, rle.Masks) else rle.pack(objects)


def _ratio(part: HostArray, whole: int) -> HostArray:
    return part / whole if whole else np.full(len(part), np.nan)


def _mean(values: HostArray) -> float:
    return math.fsum(values) / len(values) if len(values) else math.nan
