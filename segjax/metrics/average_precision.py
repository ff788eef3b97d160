"""COCO's average precision of boxes and masks, in one call or in a stream over batches and processes.

    scores = evaluate(ground_truth, detections, iou_type="segm", max_dets=(1, 10, 500))

    state = empty(categories, iou_type="segm")
    state = update(state, ground_truth_of_some_images, their_detections)        # any number of times
    scores = compute(merge(state, state_of_another_process))

The numbers are those of pycocotools. Its rules: only the `max_dets` best detections of an image and class count, equal
scores in the order of the list; a detection takes the free object of the greatest IoU at or above the threshold
(``coco_matching``); crowds and objects outside a size range are neither to be found nor to be missed, nor are
detections that found one, or nothing and are outside the range themselves; over a class, equal scores are in the order
of image ids. Sizes are the annotation's "area" and the detection's own: of its box, or of its mask where the first
detection of the list has no "bbox". An annotation whose id is 0 can be found by nobody (a warning says so).

A state is of the host, a dataclass of NumPy arrays: processes exchange it by pickle. Source: T.-Y. Lin et al. 2014,
Microsoft COCO, https://arxiv.org/abs/1405.0312; cocoapi, PythonAPI/pycocotools/cocoeval.py.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segjax.metrics import coco_matching
from segjax.metrics.coco_input import Objects, read_detections, read_truths
from segjax.metrics.coco_matching import AREA_NAMES, AREAS, THRESHOLDS
from segjax.types import HostArray, InputError

IOU_TYPES = ("bbox", "segm")
RECALLS = np.linspace(0.0, 1.0, 101)
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class State:
    """What is known of the images so far; see the module.

    Attributes:
      iou_type: "bbox" or "segm".
      max_dets: rising.
      categories: {id: name} of K classes, in the order of ids.
      images: ids of the images seen.
      positives: i64[K, A], objects to be found in each size range.
      image: [n], of each detection the image's id.
      category: i64[n], its class, 0 .. K-1.
      rank: i64[n], its place among those of its image and class, best first.
      score: f[n].
      hit: bool[n, A, T], it found an object.
      ignored: bool[n, A, T], it counts neither as right nor as wrong.
      foreign: detections of classes that are no categories.
    """

    iou_type: str
    max_dets: tuple[int, ...]
    categories: Mapping[Any, str]
    images: tuple
    positives: HostArray
    image: tuple
    category: HostArray
    rank: HostArray
    score: HostArray
    hit: HostArray
    ignored: HostArray
    foreign: int = 0


def evaluate(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    *,
    iou_type: str = "bbox",
    max_dets: Sequence[int] = (1, 10, 100),
) -> dict[str, Any]:
    """Scores a list of detections against a COCO ground truth.

    Args:
      ground_truth: {"images": [{"id", "height", "width"}], "categories": [{"id", "name"}], "annotations": [{"id",
        "image_id", "category_id", "bbox": [x, y, width, height], "area", "iscrowd", "segmentation"}]}; sizes of images
        and "segmentation" are needed for masks, "bbox" for boxes.
      detections: [{"image_id", "category_id", "score", "bbox" and/or "segmentation"}], possibly none; for masks a
        detection without one is its box, for boxes one without is its mask's.
      iou_type: "bbox" or "segm".
      max_dets: how many detections of an image and class count.
    Returns:
      as ``compute``.
    Raises:
      InputError: as ``empty``, ``update`` and ``compute``.
    """
    categories = _listed(ground_truth, "categories")
    return compute(update(empty(categories, iou_type=iou_type, max_dets=max_dets), ground_truth, detections))


def empty(
    categories: Sequence[Mapping[str, Any]], *, iou_type: str = "bbox", max_dets: Sequence[int] = (1, 10, 100)
) -> State:
    """The state of no images.

    Args:
      categories: [{"id", "name"}], the classes to score.
      iou_type: "bbox" or "segm".
      max_dets: how many detections of an image and class count; one or more numbers.
    Returns:
      State.
    Raises:
      ValueError: unknown iou_type, or impossible max_dets.
      InputError: no categories, or one without an id.
    """
    if iou_type not in IOU_TYPES:
        raise ValueError(f"iou_type={iou_type!r}: expected one of {', '.join(IOU_TYPES)}")
    whole = isinstance(max_dets, Sequence) and all(isinstance(limit, (int, np.integer)) for limit in max_dets)
    limits = tuple(sorted({int(limit) for limit in max_dets})) if whole else ()
    if not limits or limits[0] < 1:
        raise ValueError(f"max_dets={max_dets!r}: expected one or more numbers from 1 on")
    if not categories or not all(isinstance(one, Mapping) and "id" in one for one in categories):
        raise InputError(f'categories are {str(categories)[:60]}: expected [{{"id", "name"}}, ...], one or more')
    names = {category["id"]: str(category.get("name", category["id"])) for category in categories}
    shape = (0, len(AREAS), len(THRESHOLDS))
    return State(
        iou_type=iou_type,
        max_dets=limits,
        categories={key: names[key] for key in sorted(names)},
        images=(),
        positives=np.zeros((len(names), len(AREAS)), np.int64),
        image=(),
        category=np.zeros(0, np.int64),
        rank=np.zeros(0, np.int64),
        score=np.zeros(0),
        hit=np.zeros(shape, bool),
        ignored=np.zeros(shape, bool),
    )


def update(state: State, ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> State:
    """The state with some images added, each with all its annotations and detections at once.

    Args:
      state: what was seen before.
      ground_truth: "images" and their "annotations", as `evaluate`; annotations of other images or classes are left
        out, "categories" are not read.
      detections: of these images.
    Returns:
      State.
    Raises:
      InputError: an image seen before, a detection of no known image, a missing field or an impossible value; names
        the annotation by its id, the detection by its place in the list.
    """
    images = _images(state, ground_truth)
    categories = {key: k for k, key in enumerate(state.categories)}
    masks = state.iou_type == "segm"
    truths = read_truths(_listed(ground_truth, "annotations"), images, categories, masks=masks)
    found, foreign = read_detections(detections, images, categories, masks=masks, limit=state.max_dets[-1])
    if masks:
        pairs, area = coco_matching.mask_pairs(
            found.masks, found.size, found.group, truths.masks, truths.size, truths.group, truths.crowd,
            (found.name, truths.name),
        )  # fmt: skip
        found = dataclasses.replace(found, area=area) if found.area is None else found
    else:
        pairs = coco_matching.box_pairs(found.box, found.group, truths.box, truths.group, truths.crowd)
    hit, ignored = _matched(pairs, found, truths)
    positives = np.zeros_like(state.positives)
    np.add.at(positives, truths.group % len(categories), ~_out_of_range(truths))
    ids = list(images)
    added = dataclasses.replace(
        state,
        images=tuple(ids),
        positives=positives,
        image=tuple(ids[i] for i in (found.group // len(categories)).tolist()),
        category=found.group % len(categories),
        rank=found.rank,
        score=found.score,
        hit=hit,
        ignored=ignored,
        foreign=foreign,
    )
    return merge(state, added)


def merge(a: State, b: State) -> State:
    """The state of the images of both; of different processes, for instance.

    Raises:
      ValueError: they differ in iou_type, max_dets or categories.
      InputError: an image is in both.
    """
    for name in ("iou_type", "max_dets", "categories"):
        if getattr(a, name) != getattr(b, name):
            raise ValueError(f"states with {name} {getattr(a, name)} and {getattr(b, name)} cannot be merged")
    if twice := set(a.images) & set(b.images):
        raise InputError(f"image {next(iter(twice))!r} was seen twice: give each image once, with all its detections")
    arrays = {
        name: np.concatenate([getattr(a, name), getattr(b, name)])
        for name in ("category", "rank", "score", "hit", "ignored")
    }
    return dataclasses.replace(
        a,
        images=a.images + b.images,
        positives=a.positives + b.positives,
        image=a.image + b.image,
        foreign=a.foreign + b.foreign,
        **arrays,
    )


def compute(state: State) -> dict[str, Any]:
    """Reads the scores off a state.

    Args:
      state: of all images.
    Returns:
      AP (mean over IoU 0.50 to 0.95 and classes), AP50, AP75, AP_small, AP_medium, AP_large, AR_small, AR_medium,
      AR_large, all at the largest of max_dets, and AR_<m> for each m of max_dets (pycocotools prints AP at 100 and -1
      where that is none of three); -1 where there is nothing to find. "per_class": {category id: {"name", the same
      numbers}}; "precision" f64[T, R, K, A, M], "recall" f64[T, K, A, M], "scores" f64[T, R, K, A, M] as pycocotools',
      with "iou_thresholds" [T], "recall_thresholds" [R], "category_ids" [K], "areas" (A names), "max_dets" (M), and
      "iou_type".
    Raises:
      InputError: there are detections, and not one of a known category.
    """
    if state.foreign:
        known = ", ".join(map(str, list(state.categories)[:8]))
        message = f"{state.foreign} detections have a category_id that is none of the categories ({known} ...)"
        if not len(state.score):
            raise InputError(f"{message}, and no others are left: write the ids of the ground truth, not class numbers")
        _log.warning("%s: they do not count", message)
    precision, recall, scores = _curves(state)
    per_class = {
        key: {"name": name, **_summary(precision[:, :, [k]], recall[:, [k]], state.max_dets)}
        for k, (key, name) in enumerate(state.categories.items())
    }
    return {
        **_summary(precision, recall, state.max_dets),
        "per_class": per_class,
        "precision": precision,
        "recall": recall,
        "scores": scores,
        "iou_thresholds": THRESHOLDS.copy(),
        "recall_thresholds": RECALLS.copy(),
        "category_ids": list(state.categories),
        "areas": AREA_NAMES,
        "max_dets": state.max_dets,
        "iou_type": state.iou_type,
    }


def _matched(pairs: coco_matching.Pairs, found: Objects, truths: Objects) -> tuple[HostArray, HostArray]:
    """Of each detection whether it found an object, and whether it counts neither way: bool[D, A, T] each."""
    out = _out_of_range(truths)
    index, ignored = coco_matching.match(pairs, len(found.group), out, truths.crowd)
    hit = index >= 0
    if truths.without_id.any():  # to COCO's code the id 0 means: nothing found
        _log.warning("an annotation has the id 0: as in pycocotools, what finds it counts as wrong. Count ids from 1")
        hit &= ~truths.without_id[index]
    outside = (found.area[:, None] < AREAS[:, 0]) | (found.area[:, None] > AREAS[:, 1])
    return hit, ignored | (~hit & outside[:, :, None])


def _out_of_range(truths: Objects) -> HostArray:
    """bool[G, A]: objects that need not be found."""
    area = truths.area[:, None]
    return truths.crowd[:, None] | (area < AREAS[:, 0]) | (area > AREAS[:, 1])


def _curves(state: State) -> tuple[HostArray, HostArray, HostArray]:
    """Precision, recall and score at each recall threshold; -1 where there is nothing to find."""
    shape = (len(THRESHOLDS), len(RECALLS), *state.positives.shape, len(state.max_dets))
    precision, scores = np.full(shape, -1.0), np.full(shape, -1.0)
    recall = np.full((shape[0], *shape[2:]), -1.0)
    place = {key: i for i, key in enumerate(sorted(state.images))}
    image = np.array([place[key] for key in state.image], np.int64)
    order = np.lexsort((state.rank, image, -state.score, state.category))
    bounds = np.searchsorted(state.category[order], np.arange(len(state.positives) + 1))
    for k, positives in enumerate(state.positives):
        rows = order[bounds[k] : bounds[k + 1]]
        for m, limit in enumerate(state.max_dets if positives.any() else ()):
            some = rows[state.rank[rows] < limit]
            hit, counted = (np.moveaxis(x[some], 0, 2) for x in (state.hit, ~state.ignored))
            right = np.cumsum(hit & counted, axis=2)
            wrong = np.cumsum(~hit & counted, axis=2)
            height = right / (wrong + right + np.spacing(1))
            height = np.maximum.accumulate(height[..., ::-1], axis=2)[..., ::-1]
            for a in np.flatnonzero(positives):
                needed = np.searchsorted(np.arange(positives[a] + 1) / positives[a], RECALLS)
                for t in range(len(THRESHOLDS)):
                    at = np.searchsorted(right[a, t], needed)
                    at, reached = np.minimum(at, len(some) - 1), at < len(some)
                    if len(some):
                        precision[t, :, k, a, m] = np.where(reached, height[a, t, at], 0)
                        scores[t, :, k, a, m] = np.where(reached, state.score[some][at], 0)
                        recall[t, k, a, m] = right[a, t, -1] / positives[a]
                    else:
                        precision[t, :, k, a, m] = scores[t, :, k, a, m] = recall[t, k, a, m] = 0
    return precision, recall, scores


def _summary(precision: HostArray, recall: HostArray, max_dets: tuple[int, ...]) -> dict[str, float]:
    """The numbers of ``compute`` of some classes."""

    def mean(values: HostArray) -> float:
        values = values[values > -1]
        return float(values.mean()) if values.size else -1.0

    at = {f"{value:.2f}": i for i, value in enumerate(THRESHOLDS)}
    best = {"AP": precision[..., 0, -1], "AP50": precision[at["0.50"], ..., 0, -1]}
    best["AP75"] = precision[at["0.75"], ..., 0, -1]
    best |= {f"AP_{name}": precision[..., a, -1] for a, name in enumerate(AREA_NAMES) if a}
    best |= {f"AR_{limit}": recall[..., 0, m] for m, limit in enumerate(max_dets)}
    best |= {f"AR_{name}": recall[..., a, -1] for a, name in enumerate(AREA_NAMES) if a}
    return {name: mean(values) for name, values in best.items()}


def _images(state: State, ground_truth: Mapping[str, Any]) -> dict[Any, Mapping[str, Any]]:
    """The images by id, in the order of ids."""
    images: dict[Any, Mapping[str, Any]] = {}
    for number, image in enumerate(_listed(ground_truth, "images")):
        if "id" not in image:
            raise InputError(f'image number {number} of the ground truth has no "id"')
        images[image["id"]] = image
    try:
        return {key: images[key] for key in sorted(images)}
    except TypeError as error:
        raise InputError(f"ids of images are numbers and strings: expected one kind ({error})") from error


def _listed(ground_truth: Mapping[str, Any], key: str) -> list:
    if not isinstance(ground_truth, Mapping) or not isinstance(ground_truth.get(key), (list, tuple)):
        raise InputError(f'the ground truth has no list "{key}": expected COCO\'s images, categories and annotations')
    for number, entry in enumerate(ground_truth[key]):
        if not isinstance(entry, Mapping):
            raise InputError(f"number {number} of the ground truth's {key} is {str(entry)[:60]}: expected an object")
    return ground_truth[key]
