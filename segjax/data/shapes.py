"""The embedded set: scenes of overlapping shapes, drawn and prepared on first use, in seconds and without network.

The scenes (``data/scene.py``) are stored as any TFDS set is, and read through ``data/tfds.py``. Beside the semantic
label each record holds its instances (mask, class, box), which reading the label does not decode.
"""

import contextlib
import io
import logging
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from segjax import rle
from segjax.data import scene
from segjax.data import tfds as prepared
from segjax.data.metadata import Classes
from segjax.types import BOXES, CLASSES, CROWD, IMAGE, MASKS, HostArray, InputError

VERSION = "1.1.0"  # the drawings' own: another drawing is another version, and another folder
SCENES = {"train": 900, "val": 120, "test": 120}

_DRAWING = ".drawing-"  # prefix of the folders in which sets come to be
_log = logging.getLogger(__name__)


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Looks nowhere else: this set is drawn here (TFDS would leave an empty temporary folder behind)."""


class Shapes(tfds.core.GeneratorBasedBuilder):
    """The TFDS builder of the drawn scenes."""

    VERSION = tfds.core.Version(VERSION)
    name = "shapes"

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        mask = features.Image(shape=(scene.SIZE, scene.SIZE, 1))
        instances = {
            "mask": mask,  # 1 on the visible pixels
            "class": features.ClassLabel(names=scene.CLASS_NAMES),  # the label's id
            "bbox": features.BBoxFeature(),  # of the visible pixels, corners at pixel edges, as fractions of the image
        }
        content = {
            "id": features.Text(),
            "image": features.Image(shape=(scene.SIZE, scene.SIZE, 3)),
            "segmentation_mask": features.LabeledImage(labels=list(scene.CLASS_NAMES), shape=mask.shape),
            "instances": features.Sequence(instances),
        }
        return _Info(builder=self, description=__doc__, features=features.FeaturesDict(content))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager  # nothing to download
        return {split: self._generate_examples(split) for split in SCENES}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        count = SCENES[split]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for done, example in enumerate(pool.map(lambda index: _example(split, index), range(count)), start=1):
                yield example["id"], example
                if done % 300 == 0 or done == count:
                    _log.info("shapes: %d of %d scenes of split %r drawn", done, count, split)


class Instances:
    """The objects of the drawn scenes, with the interface of ``data.coco``; masks hold what is visible.

    Classes 0 .. K-1 are those of the semantic set without its background, ``category_ids`` their ids there.
    """

    instances = True
    category_ids = np.arange(1, len(scene.CLASS_NAMES), dtype=np.int64)

    def __init__(self, semantic: prepared.Records, source: Any, features: Any) -> None:
        self.name, self.split = "shapes", semantic.split
        self.classes = Classes(semantic.class_names[1:], palette=semantic.palette[1:])
        self._semantic, self._source, self._features = semantic, source, features

    num_classes = property(lambda self: len(self.classes))
    class_names = property(lambda self: self.classes.names)
    palette = property(lambda self: self.classes.palette)
    ignore_label = property(lambda self: self.classes.ignore_label)
    image_ids = property(lambda self: list(range(len(self))))

    def __len__(self) -> int:
        return len(self._semantic)

    def __repr__(self) -> str:
        return f"Instances({self.name!r}, split={self.split!r}, {len(self)} examples, {self.num_classes} classes)"

    def describe(self, i: int) -> str:
        """Returns the set, the split, the index of example `i` and its id."""
        return self._semantic.describe(i)

    def image_size(self, i: int) -> tuple[int, int]:
        """Returns (H, W) of image `i`."""
        del i
        return scene.SIZE, scene.SIZE

    def read_image(self, i: int) -> HostArray:
        """Returns image `i`, u8[H, W, 3]; InputError for a damaged record."""
        return self._semantic[i][IMAGE]

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Reads example `i`.

        Returns:
            {"image": u8[H, W, 3], "boxes": f32[n, 4] (x0, y0, x1, y1), "classes": i32[n], "crowd": bool[n] (none),
            "masks": n of {"size": [H, W], "counts": compressed string}, "area": f32[n], pixels, "image_id": i}, the
            objects in the order in which they were drawn.

        Raises:
            InputError: a damaged record.
        """
        image = self.read_image(i)
        objects = self._features.deserialize_example_np(self._source.data_source[i])["instances"]
        masks = [_pixels(mask, self.describe(i)) for mask in objects["mask"]]
        edges = np.asarray(objects["bbox"], np.float32).reshape(-1, 4)[:, [1, 0, 3, 2]]
        return {
            IMAGE: image,
            BOXES: np.round(edges * np.float32(scene.SIZE)),  # they are stored as fractions, of whole pixels
            CLASSES: np.asarray(objects["class"], np.int32) - 1,
            CROWD: np.zeros(len(masks), bool),
            MASKS: [rle.encode(mask) for mask in masks],
            "area": np.array([mask.sum() for mask in masks], np.float32),
            "image_id": i,
        }

    def ground_truth(self) -> dict[str, Any]:
        """Returns the split as ``data.coco`` does it: {"images", "categories", "annotations"}."""
        images = [{"id": i, "height": scene.SIZE, "width": scene.SIZE} for i in self.image_ids]
        names = zip(self.category_ids.tolist(), self.class_names, strict=True)
        annotations = []
        for i in self.image_ids:
            read = self[i]
            for box, kind, mask, area in zip(read[BOXES], read[CLASSES], read[MASKS], read["area"], strict=True):
                x0, y0, x1, y1 = box.tolist()
                annotations.append({
                    "id": len(annotations) + 1, "image_id": i, "category_id": int(self.category_ids[kind]),
                    "bbox": [x0, y0, x1 - x0, y1 - y0], "area": float(area), "segmentation": mask, "iscrowd": 0,
                })  # fmt: skip
        categories = [{"id": key, "name": name} for key, name in names]
        return {"images": images, "categories": categories, "annotations": annotations}


def make(*, split: str, root: str = "", instances: bool = False) -> prepared.Records | Instances:
    """Opens the drawn scenes, and draws them first where that was not yet done.

    Args:
        split: "train", "val" or "test", and slices of them, as TFDS writes them: "train[:80%]".
        root: where they are kept; "": see `prepared.cache_folder`.
        instances: the objects of the scenes in place of their labels.

    Returns:
        The dataset: images of 128x128, ``scene.CLASS_NAMES``; a set of instances has no background.

    Raises:
        InputError: no such split, or `root` cannot be written.
    """
    prepare(root)
    name = f"shapes:{VERSION}"
    semantic = prepared.make(split=split, name=name, root=root, id_key="id")
    if not instances:
        return semantic
    features = tfds.features
    objects = {"mask": features.Text(), "class": features.ClassLabel(names=scene.CLASS_NAMES)}  # masks as bytes
    objects = features.Sequence({**objects, "bbox": features.BBoxFeature()})
    source = tfds.builder_from_directory(prepared.find(name, root)).as_data_source(split)
    return Instances(semantic, source, features.FeaturesDict({"instances": objects}))


def prepare(root: str = "") -> pathlib.Path:
    """Draws and stores all splits, unless they are there; returns their folder.

    The folder appears complete, by one rename: of two processes that start at once the second finds the first one's
    result and drops its own, and one that is killed leaves no half of a set.

    Raises:
        InputError: the folder cannot be written.
    """
    place = prepared.cache_folder(root)
    target = place / "shapes" / VERSION
    if target.is_dir():
        return target
    _log.info("shapes: drawing %d scenes into %s, once; this takes some seconds", sum(SCENES.values()), target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        with tempfile.TemporaryDirectory(prefix=_DRAWING, dir=target.parent) as temporary:
            drawn = _draw_all(temporary)
            try:
                os.rename(drawn, target)
            except OSError:
                if not target.is_dir():  # else another process was first, with the same scenes
                    raise
    except OSError as error:
        raise InputError(
            f"{target}: the shapes cannot be written there ({error}): set data.root or SEGJAX_CACHE to another folder"
        ) from error
    _log.info("shapes: ready")
    return target


def _draw_all(folder: str) -> str:
    """Runs the builder inside `folder`; returns where it wrote."""
    tfds.disable_progress_bar()  # drawing says how far it is
    builder = Shapes(data_dir=folder, file_format="array_record")
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download there
        builder.download_and_prepare(download_dir=folder)
    return str(builder.data_dir)


def _sweep(folder: pathlib.Path) -> None:
    """Removes what processes killed while drawing left behind, an hour ago or more."""
    for left in folder.glob(f"{_DRAWING}*"):
        if time.time() - left.stat().st_mtime > 3600.0:
            shutil.rmtree(left, ignore_errors=True)


def _example(split: str, index: int) -> dict[str, Any]:
    """The record of one scene; the same whatever process or thread draws it."""
    drawn = scene.draw((*map(int, VERSION.split(".")), list(SCENES).index(split), index))
    instances = [
        {"mask": _png(mask.astype(np.uint8)), "class": int(kind), "bbox": _box(mask)}
        for mask, kind in zip(drawn.masks, drawn.classes, strict=True)
    ]
    return {
        "id": f"{split}_{index:05d}",
        "image": _png(drawn.image),
        "segmentation_mask": _png(drawn.label),
        "instances": instances,
    }


def _pixels(mask: bytes, where: str) -> HostArray:
    """bool[H, W] of a stored mask."""
    try:
        with Image.open(io.BytesIO(mask)) as picture:
            return np.asarray(picture) != 0
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{where}: the mask of an object cannot be read ({error}): prepare the set again") from error


def _png(array: HostArray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", compress_level=1)  # level 6: 0.85 of the size for 2.6 times the time
    return file.getvalue()


def _box(mask: HostArray) -> Any:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    return tfds.features.BBox(
        ymin=rows[0] / height,
        xmin=columns[0] / width,
        ymax=(rows[-1] + 1) / height,
        xmax=(columns[-1] + 1) / width,
    )
