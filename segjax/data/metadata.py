"""What a set's class ids mean: names, colours, the ignored label; read from and written to ``classes.json``.

| key | value |
|---|---|
| classes | names of class 0, 1, ...; the one required key |
| colors | [R, G, B] of each class; default the colour map of PASCAL VOC. One more, at place ignore_label, may follow |
| ignore_label | the id that counts nowhere; default 255, and 65535 where there are more than 255 classes |
| ids | the pixel value of each class in the label files, [0, 255] for a mask; default 0, 1, ... |
| ignore_colors | [[R, G, B], ...] that mean "ignored" in RGB label files |
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segjax.types import DEFAULT_IGNORE_LABEL, HostArray, InputError

_KEYS = ("classes", "colors", "ignore_label", "ids", "ignore_colors")
_WIDE_IGNORE_LABEL = 65535  # for sets in which 255 is a class


@dataclasses.dataclass(frozen=True, eq=False)
class Classes:
    """The classes of a set, in the order of their ids.

    Attributes:
      names: K class names.
      palette: u8[K, 3], the colour of each class; None gives ``default_palette(K)``.
      ignore_label: the id counted nowhere, in the labels a dataset returns; None gives 255, or 65535 where 255 is
        the id of a class.
      ids: the pixel value of each class in label *files*; None means 0 .. K-1. A dataset returns 0 .. K-1 always.
      ignore_colors: colours that mean "ignored" in RGB label files.
    """

    names: tuple[str, ...]
    palette: HostArray | None = None
    ignore_label: int | None = None
    ids: tuple[int, ...] | None = None
    ignore_colors: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        names = tuple(self.names)
        if not names or not all(isinstance(name, str) for name in names):
            raise InputError(f"class names must be a list of at least one string, got {self.names!r}")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"class names must differ, but {', '.join(map(repr, twice))} occurs more than once")
        palette = _colors(default_palette(len(names)) if self.palette is None else self.palette)
        if len(palette) < len(names):
            raise InputError(f"{len(names)} classes but {len(palette)} colours: give one colour per class")
        ignored = [tuple(map(int, color)) for color in _colors(self.ignore_colors)]
        default = DEFAULT_IGNORE_LABEL if len(names) <= DEFAULT_IGNORE_LABEL else _WIDE_IGNORE_LABEL
        ignore_label = default if self.ignore_label is None else self.ignore_label
        if not _is_whole(ignore_label):
            raise InputError(f"ignore_label must be a whole number, got {ignore_label!r}")
        if len(names) <= ignore_label < len(palette):  # a colour is listed for the ignored id too
            ignored.append(tuple(map(int, palette[ignore_label])))
        palette = palette[: len(names)].copy()
        palette.flags.writeable = False
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "palette", palette)
        object.__setattr__(self, "ignore_label", int(ignore_label))
        object.__setattr__(self, "ids", _pixel_values(self.ids, len(names)))
        object.__setattr__(self, "ignore_colors", tuple(dict.fromkeys(ignored)))

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Classes) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.names, self.ignore_label, self.ids))

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of ``classes.json``."""
        out = {"classes": list(self.names), "colors": self.palette.tolist(), "ignore_label": int(self.ignore_label)}
        if self.ids is not None:
            out["ids"] = list(self.ids)
        if self.ignore_colors:
            out["ignore_colors"] = [list(color) for color in self.ignore_colors]
        return out

    def write(self, path: str | pathlib.Path) -> None:
        """Writes ``classes.json`` at `path`."""
        pathlib.Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")


def read(path: str | pathlib.Path) -> Classes:
    """Reads ``classes.json``.

    Args:
      path: the JSON file.

    Returns:
      The classes.

    Raises:
      InputError: the file cannot be read, is no JSON, or says something impossible; names the file.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    try:
        return from_dict(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def from_dict(content: Mapping[str, Any]) -> Classes:
    """Builds the classes from the content of ``classes.json``; keys other than the known ones are kept out.

    Raises:
      InputError: "classes" is absent, or a value is impossible.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get("classes"), list):
        raise InputError(f'expected {{"classes": [names], ...}} with the optional keys {", ".join(_KEYS[1:])}')
    return Classes(
        names=tuple(content["classes"]),
        palette=content.get("colors"),
        ignore_label=content.get("ignore_label"),
        ids=content.get("ids"),
        ignore_colors=content.get("ignore_colors", ()),
    )


def default_palette(num_classes: int) -> HostArray:
    """Returns u8[num_classes, 3]: the colour map of PASCAL VOC, bit-reversed ids spread over R, G and B.

    Bit 3j + c of the id becomes bit 7 - j of channel c (Everingham et al., the VOC development kit, VOCcolormap.m).
    """
    ids = np.arange(num_classes)
    palette = np.zeros((num_classes, 3), np.uint8)
    for j in range(8):
        for channel in range(3):
            palette[:, channel] |= (((ids >> (3 * j + channel)) & 1) << (7 - j)).astype(np.uint8)
    return palette


def _pixel_values(ids: Sequence[int] | None, classes: int) -> tuple[int, ...] | None:
    """The pixel value of each class as a tuple, or what is wrong with them."""
    if ids is None:
        return None
    listed = isinstance(ids, (list, tuple, np.ndarray)) and all(_is_whole(value) and value >= 0 for value in ids)
    if not listed or len(ids) != classes or len(set(ids)) != classes:
        raise InputError(f"ids must be one different pixel value >= 0 per class ({classes} classes), got {ids!r}")
    return tuple(int(value) for value in ids)


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _colors(colors: Sequence[Sequence[int]] | HostArray) -> HostArray:
    """Returns u8[N, 3] of a list of colours, or says what is wrong with it."""
    try:
        array = np.asarray(colors if len(colors) else np.zeros((0, 3), np.int64))
    except (TypeError, ValueError) as error:
        raise InputError(f"colours must be a list of [R, G, B], got {colors!r}") from error
    whole = array.ndim == 2 and array.shape[1] == 3 and np.issubdtype(array.dtype, np.integer)
    if not whole or (array.size and (array.min() < 0 or array.max() > 255)):
        raise InputError(f"colours must be a list of [R, G, B] with whole numbers 0 .. 255, got {colors!r}")
    return array.astype(np.uint8)
