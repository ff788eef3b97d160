"""Examples on the canvas of a batch, and the memory that keeps them.

What is kept belongs to the dataset object: every reader of one canvas and one kind of label shares it (the check before
a run, the training, each evaluation), and it goes when the dataset goes.
"""

import pathlib
import re
import weakref
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from segjax.data import border_weight, canvas
from segjax.types import CONTENT_SIZE, IMAGE, LABEL, WEIGHT, HostArray, InputError


class Store:
    """Examples kept in memory, by index; pickled without its content."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.examples: dict[int, Mapping[str, HostArray]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"length": self.length, "examples": {}}

    def put(self, i: int, example: Mapping[str, HostArray]) -> None:
        """Keeps example `i`; InputError where the whole set would not fit into memory, judged by the first."""
        if not self.examples:
            need, free = sum(a.nbytes for a in example.values()) * self.length, _free_memory()
            if free is not None and need > free:
                raise InputError(
                    f"data.cache=True needs about {need / 2**30:.1f} GiB for {self.length} examples, and "
                    f"{free / 2**30:.1f} GiB are free: set data.cache=False"
                )
        self.examples[i] = example


class Fitted:
    """A dataset's examples on the canvas; image and label (and the label's weight), or the image only."""

    def __init__(
        self, dataset: Any, size: tuple[int, int], fit: str, *, native_label: bool, store: Store | None
    ) -> None:
        self.dataset = dataset
        self.size = size
        self.fit = fit
        self.native_label = native_label
        self.store = store

    def __len__(self) -> int:
        return len(self.dataset)

    def __repr__(self) -> str:
        return f"{self.dataset!r} on {self.size} by {self.fit}"

    def __getitem__(self, i: int) -> Mapping[str, HostArray]:
        if self.store is not None and i in self.store.examples:
            return self.store.examples[i]
        read = self.dataset[i]
        image, label = read[IMAGE], read[LABEL]
        if self.native_label and self.fit == "crop":
            refuse_a_part(self.dataset, i, image.shape[:2], self.size)
        example = {IMAGE: canvas.fit_image(image, self.size, self.fit), LABEL: label}
        if self.native_label:
            example[CONTENT_SIZE] = np.array(canvas.content_size(image.shape[:2], self.size, self.fit), np.int32)
        else:
            example[LABEL] = canvas.fit_label(label, self.size, self.fit, self.dataset.ignore_label)
            if getattr(self.dataset, "border_weight", False):
                # Cells are told apart where the label is sharpest, their distances are pixels of the canvas.
                cells = border_weight.instances(label, ignore_label=self.dataset.ignore_label)
                cells = canvas.fit_label(cells, self.size, self.fit, ignore_label=0)
                options = {"ignore_label": self.dataset.ignore_label}
                example[WEIGHT] = border_weight.weight_map(example[LABEL], cells, **options)
        if self.store is not None:
            self.store.put(i, example)
        return example


_STORES: dict[int, dict[Hashable, Store]] = {}  # by id of the dataset; emptied when the dataset goes


def on_canvas(dataset: Any, size: tuple[int, int], fit: str, *, native_label: bool, cache: bool) -> Fitted:
    """Returns the set on its canvas, with the store that every call of these options shares."""
    store = shared_store(dataset, (size, fit, native_label)) if cache else None
    return Fitted(dataset, size, fit, native_label=native_label, store=store)


def shared_store(dataset: Any, key: Hashable) -> Store:
    """Returns the memory for the examples of `dataset` made by the options `key`, the same one at every call."""
    if id(dataset) not in _STORES:
        _STORES[id(dataset)] = {}
        weakref.finalize(dataset, _STORES.pop, id(dataset), None)
    return _STORES[id(dataset)].setdefault(key, Store(len(dataset)))


def refuse_a_part(
    dataset: Any, i: int, image_size: tuple[int, int], size: tuple[int, int], key: str = "data.size"
) -> None:
    """Raises InputError where evaluation under "crop" would see only a part of example `i`; `key` says what to mend."""
    if image_size[0] > size[0] or image_size[1] > size[1]:
        raise InputError(
            f"{dataset.describe(i)} is {image_size[1]}x{image_size[0]}, larger than the canvas {size[1]}x{size[0]} "
            f"(width x height): evaluation under data.fit=crop would leave a part out. Use a larger {key}, or "
            "data.fit=pad or stretch"
        )


def _free_memory() -> int | None:
    """Returns the bytes that can be had without swapping; None where the system does not tell (only Linux does)."""
    table = pathlib.Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s*(\d+) kB", table.read_text()) if table.exists() else None
    return int(found[1]) * 1024 if found else None
