"""Counting what a set holds, going on after every bad file: the measurements behind ``segjax.data.check``."""

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from segjax.data import label_ids
from segjax.data.folder import Folder
from segjax.data.metadata import Classes
from segjax.types import IMAGE, LABEL, HostArray, InputError

UNREADABLE, SIZES, UNKNOWN, UNPAIRED = "unreadable", "size mismatch", "unknown id", "no partner"


@dataclasses.dataclass(frozen=True)
class Example:
    """What one example holds; problems are (kind, message)."""

    file: str
    size: tuple[int, int] | None = None  # (height, width) of the image
    digest: str = ""  # of the image's size and pixels
    values: Mapping[int, int] = dataclasses.field(default_factory=dict)  # class id or unknown value -> pixels
    unknown: Mapping[int, int] = dataclasses.field(default_factory=dict)  # value in the file that is no class -> pixels
    problems: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Survey:
    """What one split holds."""

    split: str
    classes: Classes
    examples: tuple[Example, ...]
    problems: tuple[tuple[str, str], ...]  # (kind, message) of the whole split

    def pixels(self) -> HostArray:
        """Returns i64[K]: the pixels of each class."""
        return np.array([sum(e.values.get(c, 0) for e in self.examples) for c in range(len(self.classes))], np.int64)

    def presence(self) -> HostArray:
        """Returns i64[K]: the images in which each class occurs."""
        return np.array(
            [sum(e.values.get(c, 0) > 0 for e in self.examples) for c in range(len(self.classes))], np.int64
        )

    def ignored(self) -> int:
        """Returns the pixels that carry the ignore label."""
        return sum(e.values.get(self.classes.ignore_label, 0) for e in self.examples)

    def unknown(self) -> dict[int, int]:
        """Returns {value that is no class: pixels}, values in order."""
        total: collections.Counter[int] = collections.Counter()
        for example in self.examples:
            total.update(example.unknown)
        return dict(sorted(total.items()))

    def all_problems(self) -> list[tuple[str, str]]:
        """Returns (kind, message) of the split and of its examples."""
        return [*self.problems, *(problem for example in self.examples for problem in example.problems)]


def survey(dataset: Any, progress: Callable[[int, int], None] | None = None, workers: int | None = None) -> Survey:
    """Reads every example of a set once, by threads.

    Args:
      dataset: see `segjax.data`. Of a `Folder` the files are examined one by one; of others what they return.
      progress: called with (examples read, examples) after each.
      workers: threads; None: as many as Python's pool takes.

    Returns:
      The survey; bad examples are in it as problems.
    """
    examine = _examine_files if isinstance(dataset, Folder) else _examine
    found = []
    with ThreadPoolExecutor(workers) as pool:
        for example in pool.map(lambda i: examine(dataset, i), range(len(dataset))):
            found.append(example)
            if progress is not None:
                progress(len(found), len(dataset))
    unpaired = tuple((UNPAIRED, message) for message in getattr(dataset, "unpaired", ()))
    return Survey(dataset.split, dataset.classes, tuple(found), unpaired)


def duplicates(surveys: Sequence[Survey]) -> tuple[list[list[str]], list[list[str]]]:
    """Finds images with the same size and pixels; resized or re-encoded copies are not found.

    Returns:
      (groups within one split, groups that reach over splits): lists of "split: file".
    """
    groups = collections.defaultdict(list)
    for one in surveys:
        for example in one.examples:
            if example.digest:
                groups[example.digest].append((one.split, example.file))
    within, across = [], []
    for group in groups.values():
        if len(group) > 1:
            place = within if len({split for split, _ in group}) == 1 else across
            place.append([f"{split}: {file}" for split, file in group])
    return within, across


def median_frequency_weights(one: Survey) -> HostArray:
    """Computes class weights that even out rare and frequent classes.

    weight(c) = median(freq) / freq(c), with freq(c) = pixels of c / all pixels of the images in which c occurs (ignored
    ones included, as in the definition); the median is over the classes that occur.

    Returns:
      f64[K]; 0 for a class that does not occur.

    Source: Eigen & Fergus 2015, "Predicting Depth, Surface Normals and Semantic Labels ...", section 4.3.
    """
    num_classes = len(one.classes)
    images = np.zeros(num_classes)
    for example in one.examples:
        total = sum(example.values.values()) + sum(example.unknown.values())
        images += [total if example.values.get(c, 0) else 0 for c in range(num_classes)]
    pixels = one.pixels()
    present = pixels > 0
    frequency = np.divide(pixels, images, out=np.zeros(num_classes), where=present)
    if not present.any():
        return np.zeros(num_classes)
    return np.divide(np.median(frequency[present]), frequency, out=np.zeros(num_classes), where=present)


def _examine_files(dataset: Folder, i: int) -> Example:
    """Reads both files of an example, so that a bad one does not hide what is wrong with the other."""
    _, image_path, label_path = dataset.pairs[i]
    problems, image, label = [], None, None
    try:
        image = dataset.read_image(i)
    except InputError as error:
        problems.append((UNREADABLE, str(error)))
    try:
        label = dataset.read_label(i)
    except InputError as error:
        problems.append((UNREADABLE, str(error)))
    values, unknown = {}, {}
    if label is not None:
        if image is not None and image.shape[:2] != label.shape[:2]:
            problems.append((SIZES, str(dataset.mismatch(i, image, label))))
        try:
            values = _count(label_ids.to_ids(label, dataset.classes, label_path))
        except InputError as error:
            problems.append((UNKNOWN, str(error)))
            values, unknown = _sort_values(label, dataset.classes)
    return Example(
        image_path, None if image is None else image.shape[:2], _digest(image), values, unknown, tuple(problems)
    )


def _examine(dataset: Any, i: int) -> Example:
    file = dataset.describe(i)
    try:
        read = dataset[i]
    except InputError as error:
        return Example(file, problems=((UNREADABLE, str(error)),))
    image, label, problems = read[IMAGE], read[LABEL], []
    if image.shape[:2] != label.shape[:2]:
        problems.append((SIZES, f"{file}: image {image.shape[:2]}, label {label.shape[:2]} (rows, columns)"))
    values, unknown = _sort_values(label, dataset.classes)
    if unknown:
        problems.append((UNKNOWN, f"{file}: label ids {', '.join(map(str, unknown))} are out of range"))
    return Example(file, image.shape[:2], _digest(image), values, unknown, tuple(problems))


def _sort_values(label: HostArray, classes: Classes) -> tuple[dict[int, int], dict[int, int]]:
    """Returns {class id or ignore label: pixels} and {value that is none: pixels} of the values in a file."""
    if label.ndim == 3:  # colours: none of them can be listed as an id
        return {}, {}
    names = {value: c for c, value in enumerate(classes.ids or range(len(classes)))}
    known, unknown = collections.Counter(), {}
    for value, pixels in _count(label).items():
        if value in names or value == classes.ignore_label:
            known[names.get(value, classes.ignore_label)] += pixels
        else:
            unknown[value] = pixels
    return dict(known), unknown


def _count(label: HostArray) -> dict[int, int]:
    if label.dtype == np.uint8:
        counts = np.bincount(label.ravel(), minlength=256)
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(label, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _digest(image: HostArray | None) -> str:
    if image is None:
        return ""
    return hashlib.blake2b(
        np.ascontiguousarray(image).data, digest_size=16, salt=str(image.shape[1]).encode()
    ).hexdigest()
