"""Which image file belongs to which label file: glob patterns whose wildcards matched the same text."""

import glob
import pathlib
import re

from segjax.data.images import SUFFIXES
from segjax.types import InputError

SHOWN = 5  # names listed in a message
Pair = tuple[str, str, str]  # what the wildcards matched, image file, label file

_WILDCARD = re.compile(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])")
_EXPRESSIONS = {"**/": "(?:(.*)/)?", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}


def find(place: pathlib.Path, split: str, images: str, labels: str, lists: str = "") -> tuple[list[Pair], list[str]]:
    """Pairs the files of one split.

    Args:
      place: the set's folder.
      split: put in place of ``{split}``.
      images, labels: glob patterns below `place`, or ``split=pattern;split=pattern``; files that are no pictures are
        left out.
      lists: where given, the text file of the split's names below `place`.

    Returns:
      (pairs sorted by name or in the order of the list, one message for each file or name without a partner).

    Raises:
      InputError: a pattern matches no picture, two files have one name, or the list cannot be read.
    """
    image_of = _match(place, _pattern(images, split, "images"), split, "images")
    label_of = _match(place, _pattern(labels, split, "labels"), split, "labels")
    names = _listed(place / lists.replace("{split}", split)) if lists else sorted(image_of)
    alone = []
    for name in names:
        if name not in image_of:
            alone.append(f"{name} of the list has no image")
        elif name not in label_of:
            alone.append(f"{image_of[name]} has no label")
    if not lists:
        alone += [f"{label_of[name]} has no image" for name in sorted(label_of) if name not in image_of]
    return [(name, image_of[name], label_of[name]) for name in names if name in image_of and name in label_of], alone


def splits(place: pathlib.Path, images: str, labels: str) -> list[str]:
    """Returns the names that can be put in place of ``{split}`` so that both patterns match something."""
    if "=" in images:
        return [part.strip().split("=", 1)[0] for part in images.split(";") if "=" in part]
    parts = pathlib.PurePath(images).parts
    where = next((i for i, part in enumerate(parts) if "{split}" in part), None)
    if where is None:
        return []
    expression = re.compile(_regex(parts[where].replace("{split}", "\0")).replace("\0", "(?P<split>.+)", 1))
    found = {}
    for entry in place.glob(str(pathlib.PurePath(*parts[:where], "*"))):
        match = expression.fullmatch(entry.name)
        if match:
            found[match["split"]] = None
    return sorted(name for name in found if all(_any(place, p.replace("{split}", name)) for p in (images, labels)))


def some(names: list[str], shown: int = SHOWN) -> str:
    """Returns the first names and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _any(place: pathlib.Path, pattern: str) -> bool:
    names = glob.iglob(pattern, root_dir=place, recursive=True)
    return any(pathlib.PurePath(name).suffix.lower() in SUFFIXES for name in names)


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
        if path.suffix.lower() not in SUFFIXES or match is None:
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
            f"{place} holds {some(there, 12) if there else 'nothing'}: set data.split, data.root or data.{option}"
        )
    return found


def _regex(pattern: str) -> str:
    """Returns the regular expression of a glob pattern, with one group per wildcard."""
    out = ""
    for piece in _WILDCARD.split(pathlib.PurePath(pattern).as_posix()):
        if _WILDCARD.fullmatch(piece):
            out += _EXPRESSIONS.get(piece) or f"({piece.replace('[!', '[^')})"
        else:
            out += re.escape(piece)
    return out


def _listed(path: pathlib.Path) -> list[str]:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the list of a split (data.lists) cannot be read: {error}") from error
    if not names:
        raise InputError(f"{path}: the list of a split (data.lists) is empty")
    return names
