"""Masks from and to COCO's JSON, and their arithmetic: areas, boxes, overlaps, unions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from segjax.rle import polygons, strings
from segjax.rle.runs import Masks, concatenate, ends, of_ones, overlaid, ranges, sums, take
from segjax.types import HostArray, InputError

Rle = Mapping[str, Any]  # {"size": [H, W], "counts": str, bytes or a list of integers}


def encode(mask: HostArray) -> dict[str, Any]:
    """Encodes a mask.

    Args:
      mask: bool or numbers [H, W]; what is not 0 is set.
    Returns:
      {"size": [H, W], "counts": compressed string}.
    Raises:
      ValueError: not two axes.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"a mask of shape {mask.shape}: expected [H, W]")
    pixels = mask.T.ravel() != 0
    edges = np.flatnonzero(np.diff(pixels, prepend=False))
    counts = np.diff(edges, prepend=0, append=pixels.size)
    return {"size": [int(n) for n in mask.shape], "counts": strings.counts_to_string(counts)}


def decode(mask: Rle) -> HostArray:
    """Decodes a mask, compressed or not; returns bool[H, W]. Raises InputError as ``pack``."""
    mask = pack([mask])
    return np.repeat(of_ones(mask), mask.counts).reshape(mask.size[0, ::-1]).T


def pack(
    masks: Sequence[Rle | Sequence], *, sizes: HostArray | None = None, name: Callable[[int], str] = "mask {}".format
) -> Masks:
    """Reads masks in any form that COCO has: compressed, uncompressed, polygons, mixed.

    Args:
      masks: N of {"size", "counts"} or lists of polygons (``from_polygons``; an empty list is an empty mask).
      sizes: integers [N, 2], (H, W) of the images; needed for polygons, and then the other masks must agree.
      name: what to call mask i in messages.
    Returns:
      Masks; counts of zero are kept as they are.
    Raises:
      InputError: damaged counts, counts whose sum is not H * W, another size than the image's, an impossible polygon.
    """
    sizes = None if sizes is None else np.asarray(sizes, np.int64).reshape(-1, 2)
    kinds = np.array([_kind(mask, name, i) for i, mask in enumerate(masks)], np.int64)
    groups, places = [], []
    for kind, read in enumerate((_compressed, _uncompressed, polygons.read)):
        where = np.flatnonzero(kinds == kind)
        if len(where):
            names = [name(i) for i in where] if len(where) < len(masks) else None
            label = name if names is None else names.__getitem__
            some = None if sizes is None else sizes[where]
            groups.append(read([masks[i] for i in where], some, label))
            places.append(where)
    if not groups:
        return Masks(np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros((0, 2), np.int64))
    if len(groups) == 1:
        return groups[0]
    return take(concatenate(groups), np.argsort(np.concatenate(places)))


def unpack(masks: Masks) -> list[dict[str, Any]]:
    """Writes masks as a list of {"size": [H, W], "counts": compressed string}."""
    text, first = strings.write(masks.counts, masks.first)
    return [
        {"size": size, "counts": text[begin:end]}
        for size, begin, end in zip(masks.size.tolist(), first[:-1], first[1:], strict=True)
    ]


def area(masks: Masks | Sequence) -> HostArray:
    """The number of set pixels of each mask, i64[N]; `masks` are Masks or what ``pack`` takes without sizes."""
    masks = _packed(masks)
    total = np.concatenate([[0], np.cumsum(masks.counts * of_ones(masks))])
    return total[masks.first[1:]] - total[masks.first[:-1]]


def to_bbox(masks: Masks | Sequence) -> HostArray:
    """The smallest box around each mask, f64[N, 4]: (x, y, width, height), pixels; zeros for an empty mask."""
    masks = _packed(masks)
    boxes = np.zeros((len(masks), 4))
    run = np.flatnonzero(of_ones(masks) & (masks.counts > 0))
    if not len(run):
        return boxes
    owner = np.repeat(np.arange(len(masks)), masks.runs)[run]
    height, last = masks.size[owner, 0], ends(masks)[run] - 1
    x0, y0 = np.divmod(last - masks.counts[run] + 1, height)
    x1, y1 = np.divmod(last, height)
    y0, y1 = np.where(x1 > x0, 0, y0), np.where(x1 > x0, height - 1, y1)  # from one column into the next
    begin = np.flatnonzero(np.diff(owner, prepend=-1))
    x0, y0 = np.minimum.reduceat(x0, begin), np.minimum.reduceat(y0, begin)
    x1, y1 = np.maximum.reduceat(x1, begin), np.maximum.reduceat(y1, begin)
    boxes[owner[begin]] = np.stack([x0, y0, x1 - x0 + 1, y1 - y0 + 1], axis=1)
    return boxes


def iou(first: Masks | Sequence, second: Masks | Sequence, crowd: HostArray | None = None) -> HostArray:
    """Intersection over union of each pair of masks; for crowds of `second` intersection over the area of `first`.

    Args:
      first: N masks (detections), Masks or what ``pack`` takes.
      second: M masks (ground truth) of the same image.
      crowd: bool[M]; None: none is.
    Returns:
      f64[N, M]; 0 where both are empty.
    Raises:
      ValueError: masks of different sizes.
    """
    first, second = _packed(first), _packed(second)
    crowd = np.zeros(len(second), bool) if crowd is None else np.asarray(crowd, bool)
    mine, theirs = to_bbox(first), to_bbox(second)
    low = np.maximum(mine[:, None, :2], theirs[None, :, :2])
    high = np.minimum(mine[:, None, :2] + mine[:, None, 2:], theirs[None, :, :2] + theirs[None, :, 2:])
    i, j = np.nonzero((high > low).all(axis=-1))
    both, areas = intersection(first, second, i, j), area(first)
    union = np.where(crowd[j], areas[i], areas[i] + area(second)[j] - both)
    out = np.zeros((len(first), len(second)))
    out[i, j] = both / np.maximum(union, 1)
    return out


def intersection(first: Masks, second: Masks, i: HostArray, j: HostArray) -> HostArray:
    """The number of pixels that mask i[p] of `first` and mask j[p] of `second` share.

    With F(x) the set pixels of a mask among the first x in its order, the run [a, b) of the other holds F(b) - F(a).

    Args:
      first: N masks.
      second: M masks.
      i: integers [P], into `first`.
      j: integers [P], into `second`.
    Returns:
      i64[P].
    Raises:
      ValueError: a pair of masks of different sizes.
    """
    unlike = np.flatnonzero((first.size[i] != second.size[j]).any(axis=1))
    if len(unlike):
        p = unlike[0]
        raise ValueError(f"masks of sizes {first.size[i[p]]} and {second.size[j[p]]}: expected one size")
    # The masks of `second` lie end to end on one line, on which F is found for all pairs at once.
    on_line = np.cumsum(second.counts)
    begins, is_set = on_line - second.counts, of_ones(second)
    before = np.cumsum(second.counts * is_set) - second.counts * is_set
    offset = np.concatenate([[0], on_line])[second.first[:-1]]

    runs = first.runs[i] // 2
    run = np.repeat(first.first[:-1][i], runs) + 1 + 2 * ranges(np.zeros_like(runs), runs)
    end, shift = ends(first), np.repeat(offset[j], runs)
    at = np.stack([end[run - 1] + shift, end[run] + shift])
    where = np.minimum(np.searchsorted(on_line, at.ravel(), side="right"), max(len(on_line) - 1, 0)).reshape(at.shape)
    covered = before[where] + is_set[where] * (at - begins[where])
    total = np.concatenate([[0], np.cumsum(covered[1] - covered[0])])
    last = np.cumsum(runs)
    return total[last] - total[last - runs]


def merge(masks: Masks | Sequence, *, intersect: bool = False) -> dict[str, Any]:
    """The union of masks of one size, or their intersection; returns {"size", "counts": compressed string}.

    Raises:
      ValueError: no masks, or masks of different sizes.
    """
    masks = _packed(masks)
    if not len(masks) or (masks.size != masks.size[0]).any():
        raise ValueError(f"masks of sizes {masks.size.tolist()}: expected one or more, of one size")
    if len(masks) == 1:
        return unpack(masks)[0]
    need = len(masks) if intersect else 1
    return unpack(overlaid(masks, np.zeros(len(masks), np.int64), masks.size[:1], need))[0]


def from_polygons(parts: Sequence, size: tuple[int, int]) -> dict[str, Any]:
    """Draws the union of polygons, to the bit as pycocotools (``frPyObjects`` and ``merge``).

    Corners are rounded on a grid five times finer; a column belongs to what its middle line crosses.

    Args:
      parts: polygons, each [x0, y0, x1, y1, ...], pixels; they may reach beyond the image. None, or of fewer than
        3 corners: nothing.
      size: (H, W).
    Returns:
      {"size": [H, W], "counts": compressed string}.
    Raises:
      InputError: a polygon of an odd number of coordinates, or with one that is no finite number.
    """
    return unpack(polygons.read([parts], np.array([size], np.int64), "the polygons {}".format))[0]


def _packed(masks: Masks | Sequence) -> Masks:
    return masks if isinstance(masks, Masks) else pack(masks)


def _kind(mask: Any, name: Callable[[int], str], i: int) -> int:
    """0: compressed, 1: uncompressed, 2: polygons."""
    if isinstance(mask, Mapping) and "counts" in mask and "size" in mask:
        if isinstance(mask["counts"], (str, bytes)):
            return 0
        if isinstance(mask["counts"], (list, tuple, np.ndarray)):
            return 1
    elif isinstance(mask, (list, tuple)):
        return 2
    raise InputError(f'{name(i)} is {str(mask)[:60]!r}: expected polygons [[x, y, ...], ...] or {{"size", "counts"}}')


def _compressed(masks: list, sizes: HostArray | None, name: Callable[[int], str]) -> Masks:
    counts, first = strings.read([mask["counts"] for mask in masks], name)
    return _checked(counts, first, [mask["size"] for mask in masks], sizes, name)


def _uncompressed(masks: list, sizes: HostArray | None, name: Callable[[int], str]) -> Masks:
    lists = []
    for i, mask in enumerate(masks):
        try:
            counts = np.asarray(mask["counts"]) if len(mask["counts"]) else np.zeros(0, np.int64)
        except ValueError:
            counts = np.zeros(0)
        if counts.ndim != 1 or counts.dtype.kind not in "iu":
            raise InputError(f"{name(i)} has the counts {str(mask['counts'])[:60]}: expected a list of integers")
        lists.append(counts.astype(np.int64))
    return _checked(np.concatenate(lists), sums([len(x) for x in lists]), [mask["size"] for mask in masks], sizes, name)


def _checked(counts: HostArray, first: HostArray, size: list, sizes: HostArray | None, name: Callable) -> Masks:
    """Masks, if every size is the image's and every sum of counts the size's."""
    for i, pair in enumerate(size):
        whole = isinstance(pair, (list, tuple, np.ndarray)) and len(pair) == 2
        if not whole or not all(isinstance(n, (int, np.integer)) and 0 <= n < 2**31 for n in pair):
            raise InputError(f"{name(i)} has the size {pair!r}: expected [height, width]")
    size = np.asarray(size, np.int64).reshape(-1, 2)
    for p in np.flatnonzero(counts < 0)[:1]:
        i = np.searchsorted(first, p, side="right") - 1
        raise InputError(f"{name(i)} has the count {counts[p]}: expected 0 or more")
    total = sums(counts)
    total = total[first[1:]] - total[first[:-1]]
    for i in np.flatnonzero(total != size.prod(axis=1))[:1]:
        h, w = size[i]
        raise InputError(f"{name(i)} has counts of the sum {total[i]}: expected {h} x {w} = {h * w}")
    if sizes is not None:
        for i in np.flatnonzero((size != sizes).any(axis=1))[:1]:
            raise InputError(
                f"{name(i)} has the size {size[i].tolist()}, its image {sizes[i].tolist()} (height, width)"
            )
    return Masks(counts, first, size)
