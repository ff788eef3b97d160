"""From the pixel values or colours of a label file to class ids, each pixel checked."""

import numpy as np

from segjax.data.metadata import Classes
from segjax.types import HostArray, InputError


def to_ids(label: HostArray, classes: Classes, path: str, values: HostArray | None = None) -> HostArray:
    """Turns the pixel values of a label file into class ids, checking each.

    Args:
      label: integers [H, W], or u8[H, W, 3] colours.
      classes: names, colours, ids and ignore label.
      path: the file, for messages.
      values: `classes.ids` as a table, where the caller keeps one.

    Returns:
      u8 or i32 [H, W] with ids in [0, K) and ignore_label.

    Raises:
      InputError: a value that is neither a class nor ignored: the file, the value, the first pixel (row, column).
    """
    if label.ndim == 3:
        return _from_colors(label, classes, path)
    if classes.ids is not None:
        return _from_values(label, classes, path, value_table(classes) if values is None else values)
    if label.size == 0 or (label.max() < len(classes) and label.min() >= 0):
        return label
    wrong = ((label < 0) | (label >= len(classes))) & (label != classes.ignore_label)
    if wrong.any():
        raise _out_of_range(label, wrong, classes, path)
    return label


def _from_values(label: HostArray, classes: Classes, path: str, table: HostArray) -> HostArray:
    inside = (label >= 0) & (label < len(table))
    ids = np.where(inside, table[np.where(inside, label, 0)], -1)
    wrong = ids < 0
    if wrong.any():
        raise _out_of_range(label, wrong, classes, path)
    return ids.astype(np.uint8 if max(len(classes) - 1, classes.ignore_label) <= 255 else np.int32)


def value_table(classes: Classes) -> HostArray | None:
    """Returns i32[max + 1]: the class id of each pixel value, ignore_label, or -1 for values that mean nothing."""
    if classes.ids is None:
        return None
    table = np.full(max(*classes.ids, classes.ignore_label, 0) + 1, -1, np.int32)
    if classes.ignore_label >= 0:
        table[classes.ignore_label] = classes.ignore_label
    table[list(classes.ids)] = np.arange(len(classes))
    return table


def _from_colors(label: HostArray, classes: Classes, path: str) -> HostArray:
    """Looks up each pixel's colour among the classes' colours and those that mean "ignored"."""
    colors = np.concatenate([classes.palette, np.asarray(classes.ignore_colors, np.uint8).reshape(-1, 3)])
    ids = np.array([*range(len(classes)), *[classes.ignore_label] * len(classes.ignore_colors)])
    codes, first = np.unique(_code(colors), return_index=True)
    pixels = _code(label)
    position = np.minimum(np.searchsorted(codes, pixels), len(codes) - 1)
    wrong = codes[position] != pixels
    if wrong.any():
        row, column = map(int, np.unravel_index(int(np.argmax(wrong)), wrong.shape))
        raise InputError(
            f"{path}: an RGB label whose colour {tuple(map(int, label[row, column]))} at (row {row}, column {column}) "
            f"is none of the {len(classes)} class colours ({int(wrong.sum())} such pixels): complete colors or "
            "ignore_colors in classes.json, or store the ids as a grey or palette PNG"
        )
    return ids[first][position].astype(np.uint8 if ids.min() >= 0 and ids.max() <= 255 else np.int32)


def _code(colors: HostArray) -> HostArray:
    colors = colors.astype(np.int32)
    return (colors[..., 0] << 16) | (colors[..., 1] << 8) | colors[..., 2]


def _out_of_range(label: HostArray, wrong: HostArray, classes: Classes, path: str) -> InputError:
    row, column = map(int, np.unravel_index(int(np.argmax(wrong)), wrong.shape))
    legal = f"0 .. {len(classes) - 1}" if classes.ids is None else ", ".join(map(str, classes.ids))
    return InputError(
        f"{path}: label id {int(label[row, column])} at (row {row}, column {column}) is out of range: the "
        f"{len(classes)} classes are {legal}, {classes.ignore_label} is ignored "
        f"({int(wrong.sum())} pixels of this file are out of range)"
    )
