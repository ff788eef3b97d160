"""Which detection finds which object, by COCO's rules, for many images, thresholds and size ranges at once.

Only pairs that overlap by the least threshold can match. They are few, and they fall into groups that share neither
detection nor object: the best detection of every group is served in one round, then the second of each, and so on.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from segjax import rle
from segjax.types import HostArray

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of IoU
AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])  # pixels, both ends included
AREA_NAMES = ("all", "small", "medium", "large")

_PAIRS_AT_ONCE = 2**20
_MASKS_AT_ONCE = 1024
_ELIGIBLE = 2**24  # more than the objects that overlap one detection


class Pairs(NamedTuple):
    """Detections and objects that may match, in the order of detections."""

    detection: HostArray  # i64[P]
    truth: HostArray  # i64[P]
    iou: HostArray  # f64[P], at least the least threshold


def box_pairs(boxes: HostArray, groups: HostArray, true_boxes: HostArray, true_groups: HostArray, crowd: HostArray
              ) -> Pairs:  # fmt: skip
    """Pairs of boxes of one group (image and class) with IoU >= 1/2; to a crowd, intersection / area of the detection.

    Args:
      boxes: f64[D, 4], (x, y, width, height).
      groups: integers [D], rising.
      true_boxes: f64[G, 4].
      true_groups: integers [G], rising.
      crowd: bool[G].
    Returns:
      Pairs.
    """
    found = []
    area, true_area = boxes[:, 2] * boxes[:, 3], true_boxes[:, 2] * true_boxes[:, 3]
    for d, g in _same_group(groups, true_groups):
        d, g, shared = _shared_boxes(boxes, true_boxes, d, g)
        union = np.where(crowd[g], area[d], area[d] + true_area[g] - shared)
        with np.errstate(divide="ignore", invalid="ignore"):
            iou = shared / union
        kept = iou >= THRESHOLDS[0]
        found.append((d[kept], g[kept], iou[kept]))
    return _joined(found)


def mask_pairs(masks: list, sizes: HostArray, groups: HostArray, true_masks: list, true_sizes: HostArray,
               true_groups: HostArray, crowd: HostArray, names: tuple) -> tuple[Pairs, HostArray]:  # fmt: skip
    """As `box_pairs` of masks, and the area of each detection's mask.

    Only masks whose boxes and areas leave room for IoU >= 1/2 are compared pixel by pixel.

    Args:
      masks: D masks in any form of ``rle.pack``.
      sizes: i64[D, 2], (H, W) of their images.
      groups: integers [D], rising.
      true_masks: G masks.
      true_sizes: i64[G, 2].
      true_groups: integers [G], rising.
      crowd: bool[G].
      names: two functions, what to call detection d and object g in messages.
    Returns:
      (Pairs, i64[D]).
    Raises:
      InputError: a mask that cannot be read, or of another size than its image.
    """
    found, areas, done = [], [np.zeros(0, np.int64)], 0
    for stop in _blocks(groups):
        low, high = np.searchsorted(true_groups, groups[done]), np.searchsorted(true_groups, groups[stop - 1], "right")
        mine = rle.pack(masks[done:stop], sizes=sizes[done:stop], name=_shifted(names[0], done))
        theirs = rle.pack(true_masks[low:high], sizes=true_sizes[low:high], name=_shifted(names[1], low))
        area, true_area, crowds = rle.area(mine), rle.area(theirs), crowd[low:high]
        boxes, true_boxes = rle.to_bbox(mine), rle.to_bbox(theirs)
        for d, g in _same_group(groups[done:stop], true_groups[low:high]):
            d, g, shared = _shared_boxes(boxes, true_boxes, d, g)
            most = np.minimum(shared, np.minimum(area[d], true_area[g]))
            room = most >= THRESHOLDS[0] * np.where(crowds[g], area[d], area[d] + true_area[g] - most)
            d, g = d[room], g[room]
            both = rle.intersection(mine, theirs, d, g)
            iou = both / np.maximum(np.where(crowds[g], area[d], area[d] + true_area[g] - both), 1)
            kept = iou >= THRESHOLDS[0]
            found.append((d[kept] + done, g[kept] + low, iou[kept]))
        areas.append(area)
        done = stop
    return _joined(found), np.concatenate(areas)


def match(pairs: Pairs, count: int, ignored: HostArray, crowd: HostArray) -> tuple[HostArray, HostArray]:
    """Gives each detection, best score first, the object of the greatest IoU that is still free.

    An object that is ignored (a crowd, or outside the size range) is taken only where no other fits; a crowd is never
    used up. Of equal IoU the later object is taken, as COCO's code does.

    Args:
      pairs: of detections in the order of being served.
      count: D, the number of detections.
      ignored: bool[G, A], in each size range.
      crowd: bool[G].
    Returns:
      (truth i64[D, A, T], -1: none; whether that object is ignored, bool[D, A, T]).
    """
    shape = (count, ignored.shape[1], len(THRESHOLDS))
    truth, is_ignored = np.full(shape, -1, np.int64), np.zeros(shape, bool)
    taken = np.zeros((len(ignored), *shape[1:]), bool)
    least = np.minimum(THRESHOLDS, 1 - 1e-10)
    order = np.lexsort((pairs.truth, pairs.iou, pairs.detection))
    d, g, iou = (x[order] for x in pairs)
    for where in _rounds(d, g, len(ignored)):
        detections, first = np.unique(d[where], return_index=True)
        objects, overlap = g[where], iou[where]
        place = np.arange(len(where)) - np.repeat(first, np.diff(np.append(first, len(where)))) + 1
        rank = (place[:, None] + _ELIGIBLE * ~ignored[objects])[:, :, None]
        free = (overlap[:, None] >= least)[:, None, :] & (crowd[objects][:, None, None] | ~taken[objects])
        best = np.maximum.reduceat(np.where(free, rank, 0), first)
        who, range_, threshold = np.nonzero(best)
        value = best[who, range_, threshold]
        chosen = objects[first[who] + value % _ELIGIBLE - 1]
        taken[chosen, range_, threshold] = True
        truth[detections[who], range_, threshold] = chosen
        is_ignored[detections[who], range_, threshold] = value < _ELIGIBLE
    return truth, is_ignored


def _rounds(d: HostArray, g: HostArray, objects: int) -> Iterator[HostArray]:
    """The pairs of each round, given in order of detections: no two detections of a round could want one object."""
    if not len(d):
        return
    detections, index = np.unique(d, return_inverse=True)
    size = len(detections) + objects
    graph = sparse.coo_matrix((np.ones(len(d), np.int8), (index, len(detections) + g)), (size, size))
    part = csgraph.connected_components(graph, directed=False)[1][: len(detections)]
    order = np.argsort(part, kind="stable")
    begin = np.flatnonzero(np.diff(part[order], prepend=-1))
    turn = np.empty(len(detections), np.int64)
    turn[order] = np.arange(len(detections)) - np.repeat(begin, np.diff(np.append(begin, len(detections))))
    by_turn = np.argsort(turn[index], kind="stable")
    yield from np.split(by_turn, np.flatnonzero(np.diff(turn[index][by_turn])) + 1)


def _same_group(groups: HostArray, true_groups: HostArray) -> Iterator[tuple[HostArray, HostArray]]:
    """All pairs of one group, some at a time: (detections, objects)."""
    low, high = np.searchsorted(true_groups, groups), np.searchsorted(true_groups, groups, side="right")
    count = high - low
    total, begin = np.cumsum(count), 0
    while begin < len(groups):
        limit = (total[begin - 1] if begin else 0) + _PAIRS_AT_ONCE
        end = max(int(np.searchsorted(total, limit, side="right")), begin + 1)
        some = count[begin:end]
        d = np.repeat(np.arange(begin, end), some)
        g = np.arange(len(d)) + np.repeat(low[begin:end] - (np.cumsum(some) - some), some)
        yield d, g
        begin = end


def _shared_boxes(boxes: HostArray, true_boxes: HostArray, d: HostArray, g: HostArray) -> tuple[HostArray, ...]:
    """The pairs whose boxes meet, and the area they share."""
    shared = np.ones(len(d))
    for axis in (0, 1):
        ends, true_ends = boxes[:, axis] + boxes[:, 2 + axis], true_boxes[:, axis] + true_boxes[:, 2 + axis]
        side = np.minimum(ends[d], true_ends[g]) - np.maximum(boxes[d, axis], true_boxes[g, axis])
        meet = side > 0
        d, g, shared = d[meet], g[meet], shared[meet] * side[meet]
    return d, g, shared


def _blocks(groups: HostArray) -> Iterator[int]:
    """Where blocks of whole groups end, of some 1,000 detections each."""
    ends, begin = np.flatnonzero(np.diff(groups, append=-1)) + 1, 0
    for end, following in zip(ends, np.append(ends, np.inf)[1:], strict=True):
        if following - begin > _MASKS_AT_ONCE:
            yield int(end)
            begin = end


def _shifted(name: Callable[[int], str], start: int) -> Callable[[int], str]:
    return lambda i: name(i + start)


def _joined(found: list[tuple[HostArray, ...]]) -> Pairs:
    if not found:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Pairs(*(np.concatenate(part) for part in zip(*found, strict=True)))
