"""Anyone's folder of images and label files, matched by name under one glob pattern each.

    ROOT/train/0001.jpg   ROOT/trainannot/0001.png   ROOT/classes.json     default patterns: {split}/*, {split}annot/*

An image and a label belong together when the wildcards of their patterns matched the same text (file suffix aside), so
``images="{split}/*"`` pairs by stem, and ``images="leftImg8bit/{split}/*/*_leftImg8bit.png"`` with
``labels="gtFine/{split}/*/*_gtFine_labelIds.png"`` pairs Cityscapes. Splits whose folders follow no rule are written
one by one: ``images="train=a/*.jpg;val=b/*.jpg"``. A split that is a list of stems (PASCAL VOC) is named by
``lists="sets/{split}.txt"``.
"""

import logging
import pathlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from segjax.data import file_pairs, label_ids, metadata
from segjax.data import images as image_files
from segjax.data.metadata import Classes
from segjax.types import DEFAULT_IGNORE_LABEL, HostArray, InputError

_log = logging.getLogger(__name__)


class Folder:
    """A set of matched image and label files; see `make`."""

    def __init__(
        self,
        name: str,
        split: str,
        pairs: list[file_pairs.Pair],
        classes: Classes,
        unpaired: list[str],
        border_weight: bool = False,
    ) -> None:
        self.name = name
        self.split = split
        self.pairs = pairs
        self.unpaired = unpaired  # messages; empty unless partial
        self.classes = classes
        self.border_weight = border_weight
        self._values = label_ids.value_table(classes)

    num_classes = property(lambda self: len(self.classes))
    class_names = property(lambda self: self.classes.names)
    palette = property(lambda self: self.classes.palette)
    ignore_label = property(lambda self: self.classes.ignore_label)

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        return f"Folder({self.name!r}, split={self.split!r}, {len(self)} examples, {self.num_classes} classes)"

    def describe(self, i: int) -> str:
        """Returns the image file of example `i`, for messages."""
        return self.pairs[i][1]

    def label_size(self, i: int) -> tuple[int, int]:
        """Returns (H, W) of label `i` from the file's header, without decoding it."""
        return image_files.read_size(self.pairs[i][2])

    def __getitem__(self, i: int) -> dict[str, HostArray]:
        """Reads example `i`.

        Returns:
          {"image": u8[H, W, 3], "label": u8[H, W], or i32[H, W] where an id exceeds 255}; label ids are 0 .. K-1 and
          ignore_label. The arrays are read-only.

        Raises:
          InputError: an unreadable file, unlike sizes, an id out of range (file, id, row and column of the pixel).
        """
        image, label = self.read_image(i), self.read_label(i)
        if image.shape[:2] != label.shape[:2]:
            raise self.mismatch(i, image, label)
        return {"image": image, "label": label_ids.to_ids(label, self.classes, self.pairs[i][2], self._values)}

    def read_image(self, i: int) -> HostArray:
        """Returns image `i`, u8[H, W, 3]; see `images.read_image`."""
        return image_files.read_image(self.pairs[i][1])

    def read_label(self, i: int) -> HostArray:
        """Returns the unchecked pixel values of label file `i`; see `images.read_label`."""
        return image_files.read_label(self.pairs[i][2])

    def mismatch(self, i: int, image: HostArray, label: HostArray) -> InputError:
        """Returns the error that says that image and label of example `i` differ in size."""
        _, image_path, label_path = self.pairs[i]
        return InputError(
            f"{image_path} is {image.shape[1]}x{image.shape[0]} (EXIF orientation applied), but its label "
            f"{label_path} is {label.shape[1]}x{label.shape[0]} (width x height): both must have one size"
        )


def make(
    *,
    split: str,
    root: str,
    folder: str = "",
    images: str = "{split}/*",
    labels: str = "{split}annot/*",
    classes: str = "classes.json",
    lists: str = "",
    train_split: str = "train",
    fallback: Classes | None = None,
    partial: bool = False,
    border_weight: bool = False,
) -> Folder:
    """Finds the images and labels of one split.

    Args:
      split: the split's name, put in place of ``{split}``.
      root: the set's folder, or its parent.
      folder: the set's folder inside `root`; where ``root/folder`` is absent, `root` itself is the set's folder.
      images: glob pattern of the images below the set's folder (``**`` allowed), or ``split=pattern;split=pattern``.
      labels: the same for the label files.
      classes: the file of names, colours and ignore label (`metadata`), below the set's folder.
      lists: where given, a text file with one matched name (usually the stem) a line: the split is these, in order.
      train_split: with neither a classes file nor `fallback`, the classes are the ids found in this split's labels.
      fallback: the classes where the set has no classes file.
      partial: leave out files without a partner (``unpaired`` tells them) instead of raising, and unreadable labels
        while looking for classes; for the dataset doctor.
      border_weight: training batches carry a U-Net's weight of each pixel (`border_weight`); class 0 is the background.

    Returns:
      The set, in the order of the matched names.

    Raises:
      InputError: no such folder, no file matches, a file without a partner, a bad classes file.
    """
    place = locate(root, folder)
    pairs, alone = file_pairs.find(place, split, images, labels, lists)
    if alone and not partial:
        raise InputError(
            f"{place}, split {split!r}: {len(alone)} files without a partner of the same name: "
            f"{file_pairs.some(alone)}. Add the missing files or move these away"
        )
    file = place / classes
    if file.is_file():
        known = metadata.read(file)
    elif fallback is not None:
        known = fallback
    else:
        try:
            scanned, _ = file_pairs.find(place, train_split, images, labels, lists)
        except InputError:  # the set has no such split: its classes are those of the split at hand
            scanned = pairs
        known = scan([label for _, _, label in scanned], partial=partial)
        names = file_pairs.some(list(known.names))
        _log.warning("%s is absent: %d classes found in the labels (%s)", file, len(known), names)
    return Folder(folder or place.name, split, pairs, known, alone, border_weight)


def locate(root: str, folder: str = "") -> pathlib.Path:
    """Returns the set's folder: ``root/folder`` where it exists, else `root`.

    Raises:
      InputError: `root` is empty or no folder.
    """
    if not root:
        raise InputError("data.root is empty: name the set's folder (--config.data.root=DIR, or SEGJAX_DATA=DIR)")
    place = pathlib.Path(root).expanduser()
    if not place.is_dir():
        raise InputError(f"data.root={root}: no such folder")
    return place / folder if folder and (place / folder).is_dir() else place


def scan(paths: Iterable[str], partial: bool = False) -> Classes:
    """Makes classes of the ids that label files hold: 0 .. the largest below the default ignore label (255).

    Args:
      paths: label files; all are read.
      partial: make the best of unreadable files and unclear ids instead of raising.

    Raises:
      InputError: RGB labels, or ids from which the classes cannot be told.
    """
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda path: _ids_of(path, partial), paths))
    ids = sorted(set().union(*found))
    used = [i for i in ids if 0 <= i < DEFAULT_IGNORE_LABEL]
    if not partial and (len(used) < 2 or len(used) < len(set(ids) - {DEFAULT_IGNORE_LABEL})):
        raise InputError(
            f"the labels hold the ids {file_pairs.some([str(i) for i in ids], 20)}: the classes cannot be told from "
            f"them ({DEFAULT_IGNORE_LABEL} counts as ignored). Write a classes.json beside the splits, for a mask of 0 "
            'and 255 {"classes": ["background", "object"], "ids": [0, 255]}'
        )
    return Classes(tuple(f"class {i}" for i in range(max(used, default=0) + 1)))


def _ids_of(path: str, partial: bool) -> set[int]:
    try:
        label = image_files.read_label(path)
        if label.ndim == 3:
            raise InputError(f'{path}: an RGB label needs a classes.json with "classes" and "colors" beside the splits')
    except InputError:
        if partial:
            return set()
        raise
    return set(np.unique(label).tolist())
