"""Anyone's folder of images and label files, matched by name under one glob pattern each.

    ROOT/train/0001.jpg   ROOT/trainannot/0001.png   ROOT/classes.json     default patterns: {split}/*, {split}annot/*

An image and a label belong together when the wildcards of their patterns matched the same text (file suffix aside), so
``images="{split}/*"`` pairs by stem, and ``images="leftImg8bit/{split}/*/*_leftImg8bit.png"`` with
``labels="gtFine/{split}/*/*_gtFine_labelIds.png"`` pairs Cityscapes. Splits whose folders follow no rule are written
one by one: ``images="train=a/*.jpg;val=b/*.jpg"``. A split that is a list of stems (PASCAL VOC) is named by
``lists="sets/{split}.txt"``.
"""

import glob
import logging
import pathlib
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from segjax.data import images as image_files
from segjax.data import label_ids, metadata
from segjax.data.metadata import Classes
from segjax.types import DEFAULT_IGNORE_LABEL, HostArray, InputError

_log = logging.getLogger(__name__)
_SHOWN = 5  # names listed in a message


class Folder:
    """A set of matched image and label files; see `make`."""

    def __init__(self, name: str, split: str, pairs: list[tuple[str, str, str]], classes: Classes) -> None:
        self.name = name
        self.split = split
        self.pairs = pairs  # (key, image file, label file)
        self.classes = classes
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
        _, image_path, label_path = self.pairs[i]
        image = image_files.read_image(image_path)
        label = image_files.read_label(label_path)
        if image.shape[:2] != label.shape[:2]:
            raise InputError(
                f"{image_path} is {image.shape[1]}x{image.shape[0]} (EXIF orientation applied), but its label "
                f"{label_path} is {label.shape[1]}x{label.shape[0]} (width x height): both must have one size"
            )
        return {"image": image, "label": label_ids.to_ids(label, self.classes, label_path, self._values)}


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

    Returns:
      The set, in the order of the matched names.

    Raises:
      InputError: no such folder, no file matches, a file without a partner, a bad classes file.
    """
    place = _place(root, folder)
    pairs = _pairs(place, split, images, labels, lists)
    file = place / classes
    if file.is_file():
        known = metadata.read(file)
    elif fallback is not None:
        known = fallback
    else:
        try:
            scanned = _pairs(place, train_split, images, labels, lists)
        except InputError:
            scanned = pairs
        known = scan(label for _, _, label in scanned)
        _log.warning(
            "%s is absent: %d classes found in the labels (%s)", file, len(known), ", ".join(known.names[:_SHOWN])
        )
    return Folder(folder or place.name, split, pairs, known)


def scan(paths: Iterable[str]) -> Classes:
    """Makes classes of the ids that label files hold: 0 .. the largest below the default ignore label (255).

    Args:
      paths: label files; all are read.

    Raises:
      InputError: RGB labels, or ids from which the classes cannot be told.
    """
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(_ids_of, paths))
    ids = sorted(set().union(*found))
    used = [i for i in ids if i != DEFAULT_IGNORE_LABEL]
    if len(used) < 2 or max(used) > DEFAULT_IGNORE_LABEL or min(used) < 0:
        shown = ", ".join(map(str, ids[:20]))
        raise InputError(
            f"the labels hold the ids {shown}: the classes cannot be told from them ({DEFAULT_IGNORE_LABEL} counts as "
            "ignored). Write a classes.json beside the splits, for a mask of 0 and 255 "
            '{"classes": ["background", "object"], "ids": [0, 255]}'
        )
    return Classes(tuple(f"class {i}" for i in range(max(used) + 1)))


def _ids_of(path: str) -> set[int]:
    label = image_files.read_label(path)
    if label.ndim == 3:
        raise InputError(f'{path}: an RGB label needs a classes.json with "classes" and "colors" beside the splits')
    return set(np.unique(label).tolist())


def _place(root: str, folder: str) -> pathlib.Path:
    if not root:
        raise InputError(
            "data.root is empty: give the set's folder (--config.data.root=DIR, or the variable SEGJAX_DATA)"
        )
    place = pathlib.Path(root).expanduser()
    if not place.is_dir():
        raise InputError(f"data.root={root}: no such folder")
    return place / folder if folder and (place / folder).is_dir() else place


def _pairs(place: pathlib.Path, split: str, images: str, labels: str, lists: str) -> list[tuple[str, str, str]]:
    """Returns (key, image file, label file) of each example, sorted by key or in the order of the list."""
    image_files_, label_files = (
        _match(place, _pattern(pattern, split, option), split, option)
        for pattern, option in ((images, "images"), (labels, "labels"))
    )
    keys = sorted(image_files_)
    if lists:
        keys = _listed(place / lists.replace("{split}", split))
    else:
        _partners(keys, label_files, image_files_, "image", place, split)
        _partners(sorted(label_files), image_files_, label_files, "label", place, split)
    for files, what in ((image_files_, "image"), (label_files, "label")):
        missing = [key for key in keys if key not in files]
        if missing:
            raise InputError(f"{place}, split {split!r}: no {what} for {_some(missing)} of the list")
    return [(key, image_files_[key], label_files[key]) for key in keys]


def _partners(
    keys: list[str], others: dict[str, str], own: dict[str, str], what: str, place: pathlib.Path, split: str
) -> None:
    alone = [key for key in keys if key not in others]
    if alone:
        other = "label" if what == "image" else "image"
        raise InputError(
            f"{place}, split {split!r}: {len(alone)} of {len(keys)} {what} files have no {other} of the same name: "
            f"{_some(alone)} (the first is {own[alone[0]]}): add the {other}s, or move these files away"
        )


def _pattern(pattern: str, split: str, option: str) -> str:
    if "=" in pattern:
        table = dict(part.strip().split("=", 1) for part in pattern.split(";") if "=" in part)
        if split not in table:
            raise InputError(f"data.{option}={pattern!r} names no pattern for the split {split!r}")
        pattern = table[split]
    return pattern.replace("{split}", split)


def _match(place: pathlib.Path, pattern: str, split: str, option: str) -> dict[str, str]:
    """Returns {what the wildcards matched: file} of the picture files under a pattern."""
    expression = re.compile(_regex(pattern))
    found: dict[str, str] = {}
    for name in sorted(glob.glob(pattern, root_dir=place, recursive=True)):
        path = place / name
        match = expression.fullmatch(pathlib.PurePath(name).as_posix())
        if path.suffix.lower() not in image_files.SUFFIXES or match is None:
            continue
        key = "/".join(group for group in match.groups() if group)
        key = key[: -len(path.suffix)] if key.endswith(path.suffix) else key
        if key in found:
            raise InputError(
                f"{found[key]} and {path} have the same name: keep one of them (data.{option}={pattern!r})"
            )
        found[key] = str(path)
    if not found:
        there = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in place.iterdir())
        raise InputError(
            f"split {split!r} is empty: no picture file matches {place / pattern} (data.{option}). "
            f"{place} holds {_some(there, 12) if there else 'nothing'}: set data.split, data.root or data.{option}"
        )
    return found


def _regex(pattern: str) -> str:
    """Returns the regular expression of a glob pattern, with one group per wildcard."""
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pathlib.PurePath(pattern).as_posix())
    known = {"**/": "(?:(.*)/)?", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}
    return "".join(
        known.get(p) or (f"({p.replace('[!', '[^')})" if p.startswith("[") and p.endswith("]") else re.escape(p))
        for p in pieces
    )


def _listed(path: pathlib.Path) -> list[str]:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the list of a split (data.lists) cannot be read: {error}") from error
    if not names:
        raise InputError(f"{path}: the list of a split (data.lists) is empty")
    return names


def _some(names: list[str], shown: int = _SHOWN) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
