"""Examples of instance sets on the canvases of their batches, kept in memory where asked for, as ``fitted`` does it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segjax.data import canvas, fitted, mask_crops
from segjax.types import BOXES, CLASSES, CONTENT_SIZE, CROWD, IMAGE, MASK_BOXES, MASKS, HostArray

NATIVE_SIZE, INDEX = "native_size", "index"  # keys of evaluation batches
OBJECTS = (BOXES, CLASSES, CROWD, MASKS, MASK_BOXES)  # keys with a row for each object


class Fitted:
    """A set's examples on their canvases: image, CONTENT_SIZE (under "crop" the whole image's), NATIVE_SIZE, INDEX and
    every object, boxes in canvas pixels and not clipped; without objects where `mask_size` is 0.
    """

    def __init__(
        self, dataset: Any, sizes: tuple[tuple[int, int], ...], fit: str, mask_size: int, *, cache: bool
    ) -> None:
        self.dataset, self.sizes, self.fit, self.mask_size = dataset, sizes, fit, mask_size
        self.bucket = np.zeros(len(dataset), np.int64)  # of each example
        if len(sizes) > 1:
            self.bucket[:] = [nearest_canvas(dataset.image_size(i), sizes, fit) for i in range(len(dataset))]
        self.buckets = [np.flatnonzero(self.bucket == k) for k in range(len(sizes))]
        key = ("instances", sizes, fit, mask_size)
        self.store = fitted.shared_store(dataset, key) if cache else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __repr__(self) -> str:
        return f"{self.dataset!r} on {self.sizes} by {self.fit}"

    def __getitem__(self, i: int) -> Mapping[str, HostArray]:
        if self.store is not None and i in self.store.examples:
            return self.store.examples[i]
        if self.mask_size or not hasattr(self.dataset, "read_image"):
            read = self.dataset[i]
        else:
            read = {IMAGE: self.dataset.read_image(i)}
        size = self.sizes[self.bucket[i]]
        native = read[IMAGE].shape[:2]
        content = canvas.content_size(native, size, self.fit)
        example = {
            IMAGE: canvas.fit_image(read[IMAGE], size, self.fit),
            CONTENT_SIZE: np.array(content, np.int32),
            NATIVE_SIZE: np.array(native, np.int32),
            INDEX: np.array(i, np.int32),
            **self._objects(i, read, native, (content[0] / native[0], content[1] / native[1])),
        }
        if self.store is not None:
            self.store.put(i, example)
        return example

    def _objects(
        self, i: int, read: Mapping[str, Any], native: tuple[int, int], scale: tuple[float, float]
    ) -> dict[str, HostArray]:
        if not self.mask_size:
            read = {CLASSES: [], BOXES: [], CROWD: [], MASKS: []}
        squares, mask_boxes = mask_crops.cut(
            read[MASKS], native, scale, self.mask_size, lambda row: f"{self.dataset.describe(i)}: mask {row}"
        )
        boxes = np.asarray(read[BOXES], np.float64).reshape(-1, 4) * (scale[1], scale[0], scale[1], scale[0])
        return {
            BOXES: boxes.astype(np.float32),
            CLASSES: np.asarray(read[CLASSES], np.int32),
            CROWD: np.asarray(read[CROWD], bool),
            MASKS: squares,
            MASK_BOXES: mask_boxes,
        }


def nearest_canvas(image_size: tuple[int, int], sizes: Sequence[tuple[int, int]], fit: str) -> int:
    """Returns the number of the canvas on which an image, its aspect kept, leaves the smallest part empty.

    Args:
      image_size: (H, W).
      sizes: (H, W) of each canvas; of equals the first.
      fit: as `canvas`; under "crop" images keep their scale, and of the canvases that hold one the smallest is taken.
    """
    holding = [k for k, size in enumerate(sizes) if size[0] >= image_size[0] and size[1] >= image_size[1]]
    if fit == "crop" and holding:
        return min(holding, key=lambda k: sizes[k][0] * sizes[k][1])
    aspect = math.log(image_size[1] / image_size[0])
    return min(range(len(sizes)), key=lambda k: round(abs(aspect - math.log(sizes[k][1] / sizes[k][0])), 9))
