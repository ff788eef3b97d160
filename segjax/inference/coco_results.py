"""Detections as COCO results: the JSON list that pycocotools' ``loadRes`` and the COCO servers read.

Numbers are those of the detections, unrounded, as detectron2 writes them: every float32 as the double that it is, so
that a file scores what its detections score in memory. Boxes are [x, y, width, height] in pixels, the differences taken
in float32; masks are compressed run lengths with ``counts`` as text.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from segjax.inference.instances import Detections
from segjax.types import InputError


def results(detections: Detections, *, image_id: int | str, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The entries of one image.

    Args:
        detections: of the image.
        image_id: of the image in the set's annotations.
        category_ids: the annotations' id of class 0, 1, ...

    Returns:
        of each detection {"image_id", "category_id", "bbox", "score", "segmentation"}; JSON types alone.

    Raises:
        ValueError: a class that has no category.
        InputError: a box or score that is not finite, which JSON does not know.
    """
    classes = np.asarray(detections.classes)
    if ((classes < 0) | (classes >= len(category_ids))).any():
        raise ValueError(f"classes {sorted(set(classes.tolist()))}: expected 0 to {len(category_ids) - 1}")
    boxes = np.array(detections.boxes, np.float32).reshape(-1, 4)
    if not (np.isfinite(boxes).all() and np.isfinite(detections.scores).all()):
        raise InputError(f"image {image_id}: a box or score is not finite: this checkpoint is of a run that went wrong")
    boxes[:, 2:] -= boxes[:, :2]
    columns = (classes.tolist(), boxes.tolist(), np.asarray(detections.scores, np.float32).tolist(), detections.masks)
    return [
        {
            "image_id": image_id if isinstance(image_id, str) else int(image_id),
            "category_id": int(category_ids[class_id]),
            "bbox": box,
            "score": score,
            "segmentation": _segmentation(mask),
        }
        for class_id, box, score, mask in zip(*columns, strict=True)
    ]


def write(path: str | os.PathLike, entries: Iterable[Mapping[str, Any]]) -> None:
    """Writes entries of ``results`` as a JSON list, one a line, in one step: a reader never finds half of it.

    Args:
        path: the file; folders above it are made.
        entries: of all images.

    Raises:
        InputError: it cannot be written.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            separator = "[\n"
            for entry in entries:
                file.write(separator + json.dumps(entry, separators=(",", ":"), allow_nan=False))
                separator = ",\n"
            file.write("\n]\n" if separator == ",\n" else "[]\n")
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write the detections to {path}: {error}") from error


def _segmentation(mask: Mapping[str, Any]) -> dict[str, Any]:
    counts = mask["counts"]
    return {
        "size": [int(n) for n in mask["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }
