"""Polygons as masks, drawn to the bit as COCO's tools draw them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from segjax.rle.runs import Masks, overlaid, ranges, sums, toggled
from segjax.types import HostArray, InputError

_FINE = 5  # polygons are drawn on a grid this much finer than the pixels
_FAR = 2**28  # pixels: no image reaches there, and what is rounded stays exact


def read(masks: Sequence[Sequence], sizes: HostArray | None, name: Callable[[int], str]) -> Masks:
    """Draws masks that are lists of polygons; see ``masks.from_polygons``.

    Args:
      masks: N lists of polygons.
      sizes: i64[N, 2], (H, W).
      name: what to call mask i in messages.
    Returns:
      Masks, each the union of its polygons.
    Raises:
      InputError: no sizes, or an impossible polygon.
    """
    if sizes is None:
        raise InputError(f"{name(0)} is drawn by polygons: the size of its image must be given")
    parts, owner = [], []
    for i, polygons in enumerate(masks):
        some = [corners(polygon, name(i)) for polygon in polygons]
        some = [polygon for polygon in some if len(polygon) > 2]  # else nothing is enclosed
        parts += some
        owner += [i] * len(some)
    owner = np.array(owner, np.int64)
    each = _drawn(parts, sizes[owner])
    single = np.bincount(owner, minlength=len(masks)) == 1
    return each if single.all() else overlaid(each, owner, sizes, 1)


def corners(polygon: Any, name: str) -> HostArray:
    """Reads the corners of a polygon.

    Args:
      polygon: [x0, y0, x1, y1, ...], pixels.
      name: what to call its mask in messages.
    Returns:
      f64[n, 2].
    Raises:
      InputError: an odd number of coordinates, or one that is no finite number.
    """
    try:
        xy = np.asarray(polygon, np.float64)
    except (TypeError, ValueError):
        xy = np.zeros(1)
    if xy.ndim != 1 or len(xy) % 2 or not (np.abs(xy) < _FAR).all():
        raise InputError(f"{name} has the polygon {str(polygon)[:60]}: expected [x0, y0, x1, y1, x2, y2, ...]")
    return xy.reshape(-1, 2)


def _drawn(parts: list[HostArray], size: HostArray) -> Masks:
    """Each polygon as a mask: where its outline crosses the middle of a column, inside and outside change."""
    count = [len(part) for part in parts]
    fine = (_FINE * np.concatenate([*parts, np.zeros((0, 2))]) + 0.5).astype(np.int64)
    following = np.arange(len(fine)) + 1
    following[sums(count)[1:] - 1] = sums(count)[:-1]
    owner = np.repeat(np.arange(len(parts)), count)
    edge, column, y = _crossings(fine, fine[following], size[owner, 1])
    owner = owner[edge]
    height = size[owner, 0]
    y = np.ceil(np.clip((y + 0.5) / _FINE - 0.5, 0, height)).astype(np.int64)
    return toggled(column * height + y, owner, size)


def _crossings(start: HostArray, stop: HostArray, width: HostArray) -> tuple[HostArray, HostArray, HostArray]:
    """Where edges, i64[E, 2] each, step from 5 k + 2 to 5 k + 3: (edge, k, the lesser y of the two points), [n] each.

    The points of an edge are those of maskApi's rleFrPoly: every integer along its longer axis, the other coordinate
    rounded; of these only the steps over the middle of a column matter, and they are found directly.
    """
    span = np.abs(stop - start)
    steep = span[:, 0] < span[:, 1]
    flip = np.where(steep, start[:, 1] > stop[:, 1], start[:, 0] > stop[:, 0])[:, None]
    start, stop = np.where(flip, stop, start), np.where(flip, start, stop)
    low, high = np.minimum(start[:, 0], stop[:, 0]), np.maximum(start[:, 0], stop[:, 0])
    first = np.maximum(-(-(low - 2) // _FINE), 0)
    count = np.maximum(np.minimum((high - 3) // _FINE, width - 1) - first + 1, 0)
    edge = np.repeat(np.arange(len(start)), count)
    column = ranges(first, count)
    (xs, ys), (dx, dy), steep = start[edge].T, (stop - start)[edge].T, steep[edge]
    left = _FINE * column + 2
    slope = np.where(steep, dx, dy) / np.where(steep, dy, dx)

    def rounded(origin: HostArray, t: HostArray) -> HostArray:
        return (origin + slope * t + 0.5).astype(np.int64)

    level = np.minimum(rounded(ys, left - xs), rounded(ys, left + 1 - xs))
    # A steep edge crosses at the first t at which x is beyond: near the solution for exact numbers.
    near = np.floor((left + 0.5 - xs) / np.where(steep, slope, 1)).astype(np.int64)
    beyond = [(rounded(xs, near + k) > left) == (dx > 0) for k in (-1, 0, 1, 2)]
    return edge, column, np.where(steep, ys + near + 2 - np.sum(beyond, axis=0), level)
