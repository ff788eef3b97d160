"""Any TFDS set with an image and a segmentation mask, prepared as array_record files and read without TensorFlow.

Sets are found by their folder, ``ROOT/name[/config]/version``, so neither the code nor the network of the set is
needed. Pictures are decoded here by Pillow from the bytes of the record: TFDS decodes a palette label to its colours
as soon as OpenCV is installed, and enforces no channel count. Other features of a record (instances) are not decoded.
"""

import io
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from segjax.data.metadata import Classes
from segjax.types import DEFAULT_IGNORE_LABEL, HostArray, InputError

_IMAGE_MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr")
_LABEL_MODES = ("L", "P", "1", "I", "I;16", "I;16B")


class Records:
    """A prepared TFDS set; see `make`. It can be pickled, and read from several threads at once."""

    def __init__(
        self, source: Any, features: Any, *, name: str, split: str, keys: Sequence[str], classes: Classes, labels: dict
    ) -> None:
        self.name = name
        self.split = split
        self.classes = classes
        self._source = source
        self._features = features
        self._image_key, self._label_key, self._id_key = keys
        self._label_offset, self._stored_ignore = labels["offset"], labels["ignore"]

    num_classes = property(lambda self: len(self.classes))
    class_names = property(lambda self: self.classes.names)
    palette = property(lambda self: self.classes.palette)
    ignore_label = property(lambda self: self.classes.ignore_label)

    def __len__(self) -> int:
        return len(self._source)

    def __repr__(self) -> str:
        return f"Records({self.name!r}, split={self.split!r}, {len(self)} examples, {self.num_classes} classes)"

    def describe(self, i: int) -> str:
        """Returns the set, the split and the index of example `i`, and its id where `id_key` was given."""
        return self._where(i, self._read(i) if self._id_key else {})

    def __getitem__(self, i: int) -> dict[str, HostArray]:
        """Reads example `i`.

        Returns:
            {"image": u8[H, W, 3], "label": u8[H, W], or i32[H, W] beyond 255 classes}; label ids are 0 .. K-1 and
            ignore_label.

        Raises:
            InputError: a damaged record, a wrong number of channels, unlike sizes, or a label id out of range; names
                the example, and of an id its row and column.
        """
        record = self._read(i)
        where = self._where(i, record)
        image = _image(record[self._image_key], f"{where}, {self._image_key!r}")
        stored = _label(record[self._label_key], f"{where}, {self._label_key!r}")
        if image.shape[:2] != stored.shape:
            raise InputError(
                f"{where}: {self._image_key!r} is {image.shape[0]}x{image.shape[1]} (height x width) but "
                f"{self._label_key!r} is {stored.shape[0]}x{stored.shape[1]}"
            )
        return {"image": image, "label": self._class_ids(stored, where)}

    def _read(self, i: int) -> dict[str, Any]:
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name}, split {self.split!r}: no example {i}, there are {len(self)}")
        try:
            return self._features.deserialize_example_np(self._source.data_source[i])
        except (RuntimeError, ValueError, OSError) as error:  # array_record's readers raise RuntimeError
            raise InputError(
                f"{self._where(i, {})}: the record cannot be read ({error}): prepare the set again"
            ) from error

    def _where(self, i: int, record: dict[str, Any]) -> str:
        ident = record.get(self._id_key, "") if self._id_key else ""
        ident = ident.decode("utf-8", "replace") if isinstance(ident, bytes) else ident
        return f"{self.name}, split {self.split!r}, example {i}" + (f" ({ident})" if ident != "" else "")

    def _class_ids(self, stored: HostArray, where: str) -> HostArray:
        ids = stored.astype(np.int32) + self._label_offset
        ignored = stored == self._stored_ignore
        wrong = ((ids < 0) | (ids >= self.num_classes)) & ~ignored
        if wrong.any():
            row, column = np.unravel_index(int(wrong.argmax()), wrong.shape)
            raise InputError(
                f"{where}: label id {stored[row, column]} at (row {row}, column {column}) of {self._label_key!r} is "
                f"outside {-self._label_offset} .. {self.num_classes - 1 - self._label_offset} (num_classes "
                f"{self.num_classes}, label_offset {self._label_offset}) and is not ignore_label {self._stored_ignore}"
            )
        ids[ignored] = self.ignore_label
        return ids.astype(np.uint8 if self.ignore_label <= 255 else np.int32)


def make(
    *,
    split: str,
    name: str = "oxford_iiit_pet",
    root: str = "",
    image_key: str = "image",
    label_key: str = "segmentation_mask",
    id_key: str = "",
    label_offset: int = 0,
    class_names: Sequence[str] = (),
    num_classes: int = 0,
    ignore_label: int = DEFAULT_IGNORE_LABEL,
) -> Records:
    """Opens a prepared TFDS set.

    Args:
        split: of the set, slices too: "train", "train[:80%]", "train[10:20]+test".
        name: as TFDS writes it: "oxford_iiit_pet", "set/config", "set:1.0.0".
        root: the folder that was given to ``segjax.data.prepare``; "": see `cache_folder`.
        image_key: the feature that holds the picture.
        label_key: the feature that holds the mask, one class id per pixel.
        id_key: the feature that names an example in messages; "": its index alone.
        label_offset: added to stored ids; -1 for the ids 1 .. 3 of oxford_iiit_pet.
        class_names: of the ids after the offset; (): those the set declares, or numbers where num_classes is given.
        num_classes: needed where neither class_names nor the set says it.
        ignore_label: the *stored* id of pixels that count nowhere; they leave as `Records.ignore_label`.

    Returns:
        The dataset.

    Raises:
        InputError: not prepared here (the message holds the command), no such split or feature, unknown class count.
    """
    folder = find(name, root)
    builder = tfds.builder_from_directory(folder)
    features = dict(builder.info.features)
    for option, key in (("image_key", image_key), ("label_key", label_key), ("id_key", id_key)):
        if key not in features and (key or option != "id_key"):
            raise InputError(f"{name}: no feature {key!r} (data.{option}); {folder} has {', '.join(features)}")
    classes = _classes(features[label_key], name, tuple(class_names), num_classes, label_offset)
    try:
        source = builder.as_data_source(split)
    except (ValueError, KeyError) as error:
        known = ", ".join(builder.info.splits)
        raise InputError(f"{name}: no split {split!r}; it has {known}, and slices such as train[:80%]") from error
    except NotImplementedError as error:  # tfrecord files
        raise InputError(f"{name}: {folder} holds no array_record files: {_command(name, root)}") from error
    if not len(source):
        raise InputError(f"{name}: split {split!r} is empty")
    keys = (image_key, label_key, id_key)
    subset = tfds.features.FeaturesDict({key: _bytes_of(features[key]) for key in keys if key})
    labels = {"offset": label_offset, "ignore": ignore_label}
    return Records(source, subset, name=name, split=split, keys=keys, classes=classes, labels=labels)


def cache_folder(root: str = "") -> pathlib.Path:
    """Returns `root`, else the environment's ``SEGJAX_CACHE``, else ``~/.cache/segjax``."""
    return pathlib.Path(root or os.environ.get("SEGJAX_CACHE") or "~/.cache/segjax").expanduser()


def find(name: str, root: str = "") -> pathlib.Path:
    """Finds the folder of a prepared set: the newest version, and the config where there is only one.

    Args:
        name: "set", "set/config", "set:1.0.0" or "set/config:1.0.0".
        root: see `cache_folder`.

    Raises:
        InputError: not prepared (with the command that does it), or several configs and none named.
    """
    place = cache_folder(root)
    path, _, version = name.partition(":")
    found = [file.parent for pattern in ("*", "*/*") for file in (place / path).glob(f"{pattern}/features.json")]
    found = [folder for folder in found if version in ("", folder.name) and tfds.core.Version.is_valid(folder.name)]
    if not found:
        raise InputError(f"{name}: not prepared in {place}: {_command(name, root)}")
    configs = sorted({str(folder.parent.relative_to(place)) for folder in found})
    if len(configs) > 1:
        raise InputError(f"{name}: {place} holds several of its configs: name one of {', '.join(configs)}")
    return max(found, key=lambda folder: tfds.core.Version(folder.name))


def _command(name: str, root: str) -> str:
    option = f" --root={root}" if root else ""
    return f"run  python -m segjax.data.prepare {name}{option}  once"


def _classes(feature: Any, name: str, names: tuple[str, ...], count: int, offset: int) -> Classes:
    """The class names: given, else declared by the set, else numbers."""
    declared = getattr(feature, "num_classes", None) or 0  # features.LabeledImage
    if not names and declared:
        names = tuple(feature.names or (f"class {i}" for i in range(declared)))[max(-offset, 0) :]
    if not names:
        names = tuple(f"class {i}" for i in range(count))
    if not names:
        raise InputError(f"{name} does not say how many classes it has: set data.num_classes or data.class_names")
    if count and len(names) != count:
        raise InputError(f"{name}: data.num_classes is {count} but there are {len(names)} class names")
    return Classes(names)


def _bytes_of(feature: Any) -> Any:
    """A feature that reads the same record without decoding the picture: both are stored as one byte string."""
    return tfds.features.Text() if isinstance(feature, tfds.features.Image) else feature


def _image(value: Any, where: str) -> HostArray:
    """u8[H, W, 3] of encoded bytes or of an array."""
    if isinstance(value, bytes):
        picture = _open(value, where)
        if picture.mode not in _IMAGE_MODES:
            raise InputError(f"{where}: a picture of mode {picture.mode} cannot be shown as 8-bit RGB")
        value = np.asarray(picture.convert("RGB"))
    value = np.asarray(value)
    if value.ndim != 3 or value.shape[-1] != 3 or value.dtype != np.uint8:
        raise InputError(f"{where}: expected u8[H, W, 3], found {value.dtype} of shape {value.shape}")
    return value


def _label(value: Any, where: str) -> HostArray:
    """Integers [H, W] of encoded bytes (palette pictures: the indices) or of an array."""
    if isinstance(value, bytes):
        picture = _open(value, where)
        if picture.mode not in _LABEL_MODES:
            raise InputError(f"{where}: a mask of mode {picture.mode}: expected one number per pixel (grey or palette)")
        value = np.asarray(picture)
    value = np.asarray(value)
    value = value[..., 0] if value.ndim == 3 and value.shape[-1] == 1 else value
    if value.ndim != 2 or value.dtype.kind not in "uib":
        raise InputError(f"{where}: expected integers [H, W] or [H, W, 1], found {value.dtype} of shape {value.shape}")
    return value


def _open(data: bytes, where: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            return picture
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{where}: truncated or damaged picture ({len(data)} bytes; {error})") from error
