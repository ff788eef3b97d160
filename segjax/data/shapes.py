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

from segjax.data import scene
from segjax.data import tfds as prepared
from segjax.types import HostArray, InputError

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


def make(*, split: str, root: str = "") -> prepared.Records:
    """Opens the drawn scenes, and draws them first where that was not yet done.

    Args:
        split: "train", "val" or "test", and slices of them, as TFDS writes them: "train[:80%]".
        root: where they are kept; "": see `prepared.cache_folder`.

    Returns:
        The dataset: images of 128x128, ``scene.CLASS_NAMES``.

    Raises:
        InputError: no such split, or `root` cannot be written.
    """
    prepare(root)
    return prepared.make(split=split, name=f"shapes:{VERSION}", root=root, id_key="id")


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
