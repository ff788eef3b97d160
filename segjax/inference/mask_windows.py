"""Masks of objects on large images, worked on inside the object's window alone: pasted, encoded, decoded.

An image of 4000x3000 with 400 objects has 4.8 GB of masks, nearly all zeros. Here a mask is (origin, window): the image
row and column of the window's first pixel, and bool[h, w]. NumPy only.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax import rle
from segjax.types import HostArray

PASTE_RULES = ("torchvision", "detectron2")
Window = tuple[tuple[int, int], HostArray]  # (first row, first column), bool[h, w]


def paste(mask: HostArray, box: HostArray, size: tuple[int, int], *, rule: str = "torchvision") -> Window:
    """The pixels of an image that one object's mask covers: ``ops.paste_masks(...) >= 0.5``, but for its window alone.

    "torchvision": a border of one zero is added (m + 2), the box is enlarged by (m + 2) / m about its centre and cut to
    integers, and the mask is resized to (x1 - x0 + 1, y1 - y0 + 1), bilinear. "detectron2": the mask is read,
    bilinear, zero outside, at the centre of each pixel.

    Args:
        mask: f32[m, m], probabilities.
        box: f32[4], (x0, y0, x1, y1), pixels.
        size: (H, W) of the image.
        rule: "torchvision" or "detectron2".

    Returns:
        (row, column) and bool[h, w], inside the image; empty where the box lies outside.

    Raises:
        ValueError: unknown rule.

    Source: torchvision, models/detection/roi_heads.py, paste_masks_in_image; detectron2, layers/mask_ops.py.
    """
    if rule not in PASTE_RULES:
        raise ValueError(f"rule={rule!r}: expected one of {', '.join(PASTE_RULES)}")
    box = np.asarray(box, np.float32)
    if not np.isfinite(box).all():
        return (0, 0), np.zeros((0, 0), bool)
    axis = _torchvision_axis if rule == "torchvision" else _detectron2_axis
    row, down, y = axis(box[1], box[3], size[0], mask.shape[0])
    column, across, x = axis(box[0], box[2], size[1], mask.shape[1])
    cells = np.pad(mask.astype(np.float32), 1)
    # Two passes by whole rows; a product of matrices would start BLAS's threads for every object.
    cells = cells[:, across] * (1 - x) + cells[:, np.minimum(across + 1, cells.shape[1] - 1)] * x
    below = np.minimum(down + 1, len(cells) - 1)
    return (row, column), cells[down] * (1 - y)[:, None] + cells[below] * y[:, None] >= np.float32(0.5)


def encode(window: Window, size: tuple[int, int]) -> dict[str, Any]:
    """The run lengths of a mask that is zero outside its window; equal to ``rle.encode`` of the whole mask.

    Args:
        window: (row, column) and bool[h, w], inside the image.
        size: (H, W) of the image.

    Returns:
        {"size": [H, W], "counts": compressed string}.
    """
    (row, column), inside = window
    height, width = inside.shape
    # Runs go down the columns: within a column, one begins where a pixel is set below one that is not.
    framed = np.zeros((width, height + 1), np.int8)
    framed[:, :height] = inside.T
    change = np.diff(framed.ravel(), prepend=np.int8(0))
    starts, ends = (_place(np.flatnonzero(change == sign), height, row, column, size[0]) for sign in (1, -1))
    # A run that fills its column to the last row goes on at the top of the next one.
    apart = starts[1:] != ends[:-1]
    starts, ends = np.r_[starts[:1], starts[1:][apart]], np.r_[ends[:-1][apart], ends[-1:]]
    edges = np.stack([starts, ends], axis=1).ravel()
    counts = np.diff(np.r_[0, edges, size[0] * size[1]])
    if edges.size and counts[-1] == 0:  # a run of zeros at the end is not written
        counts = counts[:-1]
    return {"size": [int(n) for n in size], "counts": rle.counts_to_string(counts)}


def decode(encoded: Mapping[str, Any]) -> Window:
    """The window of a mask: the smallest that holds it, empty if nothing is set.

    Args:
        encoded: {"size": [H, W], "counts": compressed string or list of run lengths}.

    Returns:
        (row, column) and bool[h, w].

    Raises:
        InputError: as ``rle.pack``.
    """
    height = int(encoded["size"][0])
    edges = np.cumsum(rle.pack([encoded]).counts)
    starts, ends = edges[:-1:2], edges[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    if not starts.size:
        return (0, 0), np.zeros((0, 0), bool)
    first, last = starts[0] // height, (ends[-1] - 1) // height
    change = np.zeros((last - first + 1) * height + 1, np.int8)
    change[starts - first * height] = 1
    change[ends - first * height] -= 1  # a run may begin where another ends
    columns = np.cumsum(change[:-1], dtype=np.int8).view(bool).reshape(-1, height).T
    rows = np.flatnonzero(columns.any(axis=1))
    return (int(rows[0]), int(first)), columns[rows[0] : rows[-1] + 1]


def _torchvision_axis(low: HostArray, high: HostArray, limit: int, cells: int) -> tuple[int, HostArray, HostArray]:
    """What the visible pixels of a box read along an axis.

    Args:
        low: f32, where the box begins.
        high: f32, where it ends.
        limit: pixels of the image.
        cells: of the mask.

    Returns:
        the first pixel; i64[n], for each of the n pixels the cell it reads, of the mask with a border of one; f32[n],
        the share of the cell after that.
    """
    half = (high - low) * np.float32(0.5) * np.float32((cells + 2) / cells)
    centre = (high + low) * np.float32(0.5)
    start, stop = int(centre - half), int(centre + half) + 1
    length = max(stop - start, 1)
    pixels = np.arange(max(start, 0), min(stop, limit))
    source = np.float32(cells + 2) / np.float32(length) * ((pixels - start).astype(np.float32) + np.float32(0.5))
    source = np.maximum(source - np.float32(0.5), np.float32(0))
    floor = np.floor(source)
    return max(start, 0), floor.astype(np.int64), source - floor


def _detectron2_axis(low: HostArray, high: HostArray, limit: int, cells: int) -> tuple[int, HostArray, HostArray]:
    """As `_torchvision_axis`. Outside the box the mask, read with zeros beyond it, is below 1/2."""
    if not high > low:
        return 0, np.zeros(0, np.int64), np.zeros(0, np.float32)
    start, stop = max(int(np.floor(low)) - 1, 0), min(int(np.ceil(high)) + 1, limit)
    centres = np.arange(start, stop).astype(np.float32) + np.float32(0.5)
    grid = (centres - low) / (high - low) * np.float32(2) - np.float32(1)
    source = ((grid + np.float32(1)) * np.float32(cells) - np.float32(1)) / np.float32(2)
    source = np.clip(source, np.float32(-1), np.float32(cells))
    floor = np.floor(source)
    return start, floor.astype(np.int64) + 1, source - floor


def _place(index: HostArray, height: int, row: int, column: int, rows: int) -> HostArray:
    """From places in framed columns of height + 1 to places in the image's columns."""
    x, y = np.divmod(index, height + 1)
    return (column + x) * rows + row + y
