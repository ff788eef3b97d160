"""COCO's lists of annotations and of results as arrays, in the order in which they are matched."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from segjax import rle
from segjax.types import HostArray, InputError

_MASKS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Objects:
    """Annotations or detections, ordered by group; the group of image i and class k is i * K + k.

    Attributes:
      group: i64[N], rising.
      box: f64[N, 4], (x, y, width, height); zeros where only masks matter.
      area: f64[N]; None where it is still to be read off the masks.
      masks: N masks in any form, or none.
      size: i64[N, 2], (H, W) of the images, where masks matter.
      name: what to call object i in messages.
      crowd: bool[N], of annotations.
      without_id: bool[N], annotations whose id is 0.
      rank: i64[N], place in the group, best score first, of detections.
      score: f[N], of detections.
    """

    group: HostArray
    box: HostArray
    area: HostArray | None
    masks: list
    size: HostArray
    name: Callable[[int], str]
    crowd: HostArray | None = None
    without_id: HostArray | None = None
    rank: HostArray | None = None
    score: HostArray | None = None


def read_truths(annotations: Sequence, images: Mapping, categories: Mapping[Any, int], *, masks: bool) -> Objects:
    """Reads the annotations of known images and classes, in the order of the list within each group.

    Args:
      annotations: of COCO's JSON.
      images: {id: image}, in the order of groups.
      categories: {id: 0 .. K-1}.
      masks: "segmentation" is needed, else "bbox".
    Returns:
      Objects.
    Raises:
      InputError: a field is missing or impossible, or an id occurs twice; names the annotation's id.
    """
    group, place, _ = _groups(annotations, images, categories, "annotation number {}".format)
    order = place[np.argsort(group, kind="stable")]
    kept = [annotations[i] for i in order]
    names = [f"annotation {a['id']!r}" if "id" in a else f"annotation number {i}" for a, i in zip(kept, order)]  # noqa: B905
    ids = [a["id"] for a in kept if "id" in a]
    if len(set(ids)) < len(ids):
        seen: set = set()
        twice = next(key for key in ids if key in seen or seen.add(key))
        raise InputError(f"two annotations have the id {twice!r}: ids must differ")
    name = names.__getitem__
    return Objects(
        group=np.sort(group, kind="stable"),
        box=np.zeros((len(kept), 4)) if masks else _numbers(kept, "bbox", name, 4),
        area=_numbers(kept, "area", name),
        masks=_masks(kept, name) if masks else [],
        size=_sizes(kept, images) if masks else np.zeros((0, 2), np.int64),
        name=name,
        crowd=np.array([bool(a.get("iscrowd", 0)) for a in kept], bool),
        without_id=np.array(["id" in a and a["id"] == 0 for a in kept], bool),
    )


def read_detections(
    detections: Sequence, images: Mapping, categories: Mapping[Any, int], *, masks: bool, limit: int
) -> tuple[Objects, int]:
    """Reads the best detections of each group, equal scores in the order of the list.

    Args:
      detections: COCO's results.
      images: as ``read_truths``.
      categories: as ``read_truths``.
      masks: masks are compared, else boxes.
      limit: the most of a group.
    Returns:
      (Objects, the number of detections of other classes, which are left out).
    Raises:
      InputError: an unknown image, a field that is missing or impossible; names the detection's place in the list.
    """
    group, place, foreign = _groups(detections, images, categories, "detection number {}".format, strict=True)
    score = _numbers([detections[i] for i in place], "score", lambda i: f"detection number {place[i]}")
    order = np.lexsort((-score, group))
    group, place, score = group[order], place[order], score[order]
    rank = np.arange(len(group)) - np.searchsorted(group, group)
    best = rank < limit
    group, place, score, rank = group[best], place[best], score[best], rank[best]
    kept = [detections[i] for i in place]

    def name(i: int) -> str:
        return f"detection number {place[i]}"

    # The first detection of all says how sizes are measured, as in COCO's code.
    boxed = bool(len(detections)) and len(_box_of(detections[0])) > 0
    if boxed:
        box = _numbers(kept, "bbox", name, 4)
        area = box[:, 2] * box[:, 3]
    elif masks:
        box, area = np.zeros((len(kept), 4)), None
    else:
        box, area = _boxes_of_masks(kept, images, name)
    shapes = [_with_mask(d) if boxed else d for d in kept] if masks else []
    found = Objects(
        group=group,
        box=box,
        area=area,
        masks=_masks(shapes, name),
        size=_sizes(shapes, images) if masks else np.zeros((0, 2), np.int64),
        name=name,
        rank=rank,
        score=score,
    )
    return found, foreign


def _groups(
    objects: Sequence, images: Mapping, categories: Mapping[Any, int], name: Callable[[int], str], strict: bool = False
) -> tuple[HostArray, HostArray, int]:
    """Group and place in the list of the objects of known classes and images; how many classes are not known."""
    at = {key: i for i, key in enumerate(images)}
    try:
        image = np.array([at.get(x["image_id"], -1) for x in objects], np.int64)
        category = np.array([categories.get(x["category_id"], -1) for x in objects], np.int64)
    except (KeyError, TypeError) as error:
        i = next(i for i, x in enumerate(objects) if not (isinstance(x, Mapping) and _has_ids(x)))
        raise InputError(
            f'{name(i)} is {str(objects[i])[:60]}: expected "image_id" and "category_id", each a number or a string'
        ) from error
    if strict and (image < 0).any():
        i = int(np.argmin(image))
        raise InputError(f"{name(i)} has the image_id {objects[i]['image_id']!r}: no such image in the ground truth")
    place = np.flatnonzero((image >= 0) & (category >= 0))
    return image[place] * len(categories) + category[place], place, int((category < 0).sum())


def _has_ids(x: Mapping[str, Any]) -> bool:
    return all(isinstance(x.get(key), Hashable) and key in x for key in ("image_id", "category_id"))


def _box_of(detection: Mapping[str, Any]) -> Sequence:
    box = detection.get("bbox")
    return box if isinstance(box, (list, tuple, np.ndarray)) else ()


def _numbers(objects: Sequence, key: str, name: Callable[[int], str], width: int = 0) -> HostArray:
    """f64[N], or f64[N, width], of a field of each object."""
    shape = (len(objects), width) if width else (len(objects),)
    try:
        values = np.array([x[key] for x in objects], np.float64).reshape(shape)
        if np.isfinite(values).all():
            return values
    except (KeyError, TypeError, ValueError):
        pass
    expected = f"{width} numbers" if width else "a number"
    for i, x in enumerate(objects):
        try:
            value = np.asarray(x[key], np.float64)
            good = value.shape == shape[1:] and np.isfinite(value).all()
        except (KeyError, TypeError, ValueError):
            good = False
        if not good:
            raise InputError(f"{name(i)} has {key!r} {x.get(key)!r}: expected {expected}")
    raise InputError(f"{key!r} of {name(0)} and those after it: expected {expected} each")


def _masks(objects: Sequence, name: Callable[[int], str]) -> list:
    for i, x in enumerate(objects):
        if "segmentation" not in x:
            raise InputError(f'{name(i)} has no "segmentation": masks need one')
    return [x["segmentation"] for x in objects]


def _with_mask(detection: Mapping[str, Any]) -> Mapping[str, Any]:
    """The detection; one that has a box only, with the box as its mask."""
    if "segmentation" in detection:
        return detection
    x, y, width, height = detection["bbox"]
    corners = [x, y, x, y + height, x + width, y + height, x + width, y]
    return {"image_id": detection["image_id"], "segmentation": [corners]}


def _boxes_of_masks(objects: Sequence, images: Mapping, name: Callable[[int], str]) -> tuple[HostArray, HostArray]:
    """Boxes and areas of the masks; of a detection with a box its own box."""
    masks, sizes = _masks(objects, name), _sizes(objects, images)
    box, area = np.zeros((len(masks), 4)), np.zeros(len(masks))
    for begin in range(0, len(masks), _MASKS_AT_ONCE):
        some = slice(begin, begin + _MASKS_AT_ONCE)
        packed = rle.pack(masks[some], sizes=sizes[some], name=lambda i, begin=begin: name(begin + i))
        box[some], area[some] = rle.to_bbox(packed), rle.area(packed)
    own = [i for i, x in enumerate(objects) if "bbox" in x]
    box[own] = _numbers([objects[i] for i in own], "bbox", lambda i: name(own[i]), 4)
    return box, area


def _sizes(objects: Sequence, images: Mapping) -> HostArray:
    """i64[N, 2]: (H, W) of each object's image."""
    known: dict[Any, tuple[int, int]] = {}
    for key in {x["image_id"] for x in objects}:
        size = tuple(images[key].get(side) for side in ("height", "width"))
        if not all(isinstance(n, (int, np.integer)) and n > 0 for n in size):
            raise InputError(f"image {key!r} has the height and width {size}: masks need both, whole numbers from 1 on")
        known[key] = size
    return np.array([known[x["image_id"]] for x in objects], np.int64).reshape(-1, 2)
