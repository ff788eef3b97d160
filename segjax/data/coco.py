"""Sets of instances in COCO's JSON: one file of images, categories and annotations per split, polygons or run lengths.

    ROOT/train/0001.jpg   ROOT/annotations/instances_train.json             the default patterns

Classes 0 .. K-1 are the categories in the order of their ids, which ``category_ids`` keeps for writing results. All of
the JSON is checked when the set is opened. What is ordinary:

| in the file | in an example |
|---|---|
| an image without annotations | no objects |
| "iscrowd": 1 | an object with crowd True |
| no "bbox" or no "area" | those of the mask |
| a box up to a pixel beyond the image (rounding) | clipped |
| no polygon of 3 corners, run lengths of no pixel, a box without width or height, "area": 0 | left out, and counted |

What is left out of the examples is in `ground_truth`, but for what is no polygon, because COCO's scores count it.
"""

import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segjax import rle
from segjax.data import images as image_files
from segjax.data.file_pairs import some
from segjax.data.folder import locate
from segjax.data.metadata import Classes
from segjax.rle import polygons
from segjax.types import BOXES, CLASSES, CROWD, IMAGE, MASKS, HostArray, InputError

_BEYOND = 1.0  # pixels that a box may reach beyond its image
_log = logging.getLogger(__name__)


class Coco:
    """The images of one JSON file and their objects; see `make`.

    Attributes:
      category_ids: i64[K], the file's id of each class.
      image_ids: of each example.
      left_out: annotations that enclose nothing.
    """

    instances = True

    def __init__(self, name: str, split: str, folder: pathlib.Path, file: pathlib.Path, content: Mapping[str, Any]
                 ) -> None:  # fmt: skip
        self.name = name
        self.split = split
        self.folder = folder
        self.file = file
        self.category_ids, self.classes = _categories(content["categories"], file)
        self._images = _images(content["images"], file)
        self.image_ids = [image["id"] for image in self._images]
        self._objects, self._hollow = _objects(content["annotations"], self._images, self.category_ids, file)
        self.left_out = len(content["annotations"]) - sum(map(len, self._objects))

    num_classes = property(lambda self: len(self.classes))
    class_names = property(lambda self: self.classes.names)
    palette = property(lambda self: self.classes.palette)
    ignore_label = property(lambda self: self.classes.ignore_label)

    def __len__(self) -> int:
        return len(self._images)

    def __repr__(self) -> str:
        return f"Coco({self.name!r}, split={self.split!r}, {len(self)} examples, {self.num_classes} classes)"

    def describe(self, i: int) -> str:
        """Returns the image file of example `i`, for messages."""
        return str(self.folder / self._images[i]["file_name"])

    def image_size(self, i: int) -> tuple[int, int]:
        """Returns (H, W) of image `i` as the JSON says, without opening the image."""
        return self._images[i]["height"], self._images[i]["width"]

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Reads example `i`.

        Returns:
          {"image": u8[H, W, 3], "boxes": f32[n, 4] (x0, y0, x1, y1) within the image, "classes": i32[n], "crowd":
          bool[n], "masks": n of {"size": [H, W], "counts": compressed string or list}, "area": f32[n], pixels,
          "image_id"}, the objects in the order of the file.

        Raises:
          InputError: an unreadable image, or one of another size than the JSON says.
        """
        image = self.read_image(i)
        size, objects = self.image_size(i), self._objects[i]
        masks = [a["segmentation"] for a in objects]
        drawn = [n for n, mask in enumerate(masks) if not isinstance(mask, Mapping)]
        sizes = np.tile(np.array(size), (len(drawn), 1))
        for n, mask in zip(drawn, rle.unpack(rle.pack([masks[n] for n in drawn], sizes=sizes)), strict=True):
            masks[n] = mask
        x, y, width, height = np.array([a["bbox"] for a in objects], np.float64).reshape(-1, 4).T
        boxes = np.stack([x, y, x + width, y + height], axis=1)
        return {
            IMAGE: image,
            BOXES: np.clip(boxes, 0, [*size[::-1], *size[::-1]]).astype(np.float32),
            CLASSES: np.array([a["class"] for a in objects], np.int32),
            CROWD: np.array([a["crowd"] for a in objects], bool),
            MASKS: masks,
            "area": np.array([a["area"] for a in objects], np.float32),
            "image_id": self.image_ids[i],
        }

    def read_image(self, i: int) -> HostArray:
        """Returns image `i`, u8[H, W, 3]; InputError if it cannot be read or has another size than the JSON says."""
        image = image_files.read_image(self.describe(i))
        rows, columns = self.image_size(i)
        if image.shape[:2] != (rows, columns):
            raise InputError(
                f"{self.describe(i)} is {image.shape[1]}x{image.shape[0]} (EXIF orientation applied), but {self.file} "
                f"says {columns}x{rows} of image {self.image_ids[i]!r} (width x height): both must have one size"
            )
        return image

    def ground_truth(self) -> dict[str, Any]:
        """Returns the split as ``metrics.average_precision`` takes it, without opening images.

        Returns:
          {"images", "categories", "annotations"}; annotations without a polygon of 3 corners are left out.
        """
        annotations = [
            {key: a[key] for key in ("id", "bbox", "area", "segmentation")}
            | {"image_id": image["id"], "category_id": int(self.category_ids[a["class"]]), "iscrowd": int(a["crowd"])}
            for image, objects, hollow in zip(self._images, self._objects, self._hollow, strict=True)
            for a in objects + hollow
        ]
        names = zip(self.category_ids.tolist(), self.class_names, strict=True)
        categories = [{"id": key, "name": name} for key, name in names]
        return {"images": list(self._images), "categories": categories, "annotations": annotations}


def make(
    *,
    split: str,
    root: str,
    folder: str = "",
    images: str = "{split}",
    annotations: str = "annotations/instances_{split}.json",
) -> Coco:
    """Opens one split and checks its JSON.

    Args:
      split: the split's name, put in place of ``{split}``: "train", or "train2017" of COCO.
      root: the set's folder, or its parent.
      folder: the set's folder inside `root`; where ``root/folder`` is absent, `root` itself is the set's folder.
      images: the folder below which "file_name" is found, below the set's folder.
      annotations: the JSON file, below the set's folder.

    Returns:
      The set, in the order of the JSON's images.

    Raises:
      InputError: no such folder or file, no JSON, an image file that is missing, ids that are unknown or occur twice,
        a box outside its image, counts whose sum is not H * W, a polygon of half a corner; names file, id and value.
    """
    place = locate(root, folder)
    file = place / annotations.replace("{split}", split)
    dataset = Coco(folder or place.name, split, place / images.replace("{split}", split), file, _content(file))
    if not dataset.folder.is_dir():
        raise InputError(f"{dataset.folder}: no such folder, but {file} lists images of it")
    present = {path.name for path in dataset.folder.iterdir()}
    paths = [dataset.describe(i) for i, image in enumerate(dataset._images) if image["file_name"] not in present]
    if missing := [path for path in paths if not os.path.isfile(path)]:
        raise InputError(f"{file} lists {len(missing)} images whose files are missing: {some(missing)}")
    if dataset.left_out:
        _log.warning("%s: %d annotations enclose nothing and are left out", file, dataset.left_out)
    return dataset


def _content(file: pathlib.Path) -> Mapping[str, Any]:
    """The JSON, if it has COCO's three lists of objects."""
    if not file.is_file():
        beside = some(sorted(path.name for path in file.parent.glob("*.json"))) or "no JSON file"
        raise InputError(f"{file}: no such file (data.annotations says which); {file.parent} has {beside}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read as JSON: {error}") from error
    for key in ("images", "categories", "annotations"):
        listed = content.get(key) if isinstance(content, Mapping) else None
        if not isinstance(listed, list) or not all(isinstance(entry, Mapping) for entry in listed):
            raise InputError(f'{file}: expected {{"images": [...], "categories": [...], "annotations": [...]}} of COCO')
    return content


def _categories(categories: Sequence[Mapping[str, Any]], file: pathlib.Path) -> tuple[HostArray, Classes]:
    for category in categories:
        if not _is_whole(category.get("id")) or not isinstance(category.get("name"), str):
            raise InputError(f'{file}: the category {str(category)[:80]} needs a whole "id" and a "name"')
    _check_ids(categories, "categories", file)
    categories = sorted(categories, key=lambda category: category["id"])
    try:
        names, ids = (tuple(category[key] for category in categories) for key in ("name", "id"))
        classes = Classes(names, ids=ids)
    except InputError as error:
        raise InputError(f"{file}: categories: {error}") from error
    return np.array([category["id"] for category in categories], np.int64), classes


def _images(images: Sequence[Mapping[str, Any]], file: pathlib.Path) -> list[dict[str, Any]]:
    for image in images:
        sides = (image.get("height"), image.get("width"))
        if not all(_is_whole(side) and side > 0 for side in sides):
            raise InputError(
                f"{file}: image {image.get('id')!r} has the height and width {sides}: expected whole numbers"
            )
        if not isinstance(image.get("file_name"), str) or not image["file_name"]:
            raise InputError(f"{file}: image {image.get('id')!r} has the file_name {image.get('file_name')!r}")
    _check_ids(images, "images", file)
    return [{key: image[key] for key in ("id", "file_name", "height", "width")} for image in images]


def _check_ids(entries: Sequence[Mapping[str, Any]], kind: str, file: pathlib.Path) -> None:
    seen: set = set()
    for number, entry in enumerate(entries):
        key = entry.get("id")
        if not isinstance(key, (int, str)) or isinstance(key, bool):
            raise InputError(f"{file}: number {number} of {kind} has the id {key!r}: expected a whole number")
        if key in seen:
            raise InputError(f"{file}: two {kind} have the id {key!r}")
        seen.add(key)


def _objects(
    annotations: Sequence[Mapping[str, Any]],
    images: Sequence[Mapping[str, Any]],
    category_ids: HostArray,
    file: pathlib.Path,
) -> tuple[list[list[dict[str, Any]]], list[list[dict[str, Any]]]]:
    """The objects of each image, and those that enclose nothing but have a mask."""
    _check_ids(annotations, "annotations", file)
    place = {image["id"]: i for i, image in enumerate(images)}
    classes = {key: k for k, key in enumerate(category_ids.tolist())}
    for a in annotations:
        if not _is_known(a.get("image_id"), place):
            raise InputError(f"{file}: annotation {a['id']!r} has the image_id {a.get('image_id')!r}: no such image")
        if not _is_known(a.get("category_id"), classes):
            given, known = a.get("category_id"), some([str(key) for key in classes])
            raise InputError(
                f"{file}: annotation {a['id']!r} has the category_id {given!r}: the categories have {known}"
            )
        if not isinstance(a.get("iscrowd", 0), int) or a.get("iscrowd", 0) not in (0, 1):
            raise InputError(f"{file}: annotation {a['id']!r} has iscrowd {a['iscrowd']!r}: expected 0 or 1")
    sizes = np.array([[images[place[a["image_id"]]][side] for side in ("height", "width")] for a in annotations])
    measured = _measured(annotations, sizes.reshape(-1, 2), file)
    out, hollow = ([[] for _ in images] for _ in range(2))
    for a, (box, area), size in zip(annotations, measured, sizes.tolist(), strict=True):
        _check_box(a["id"], box, size, file)
        kept = {"id": a["id"], "segmentation": a["segmentation"], "bbox": box, "area": area}
        kept |= {"class": classes[a["category_id"]], "crowd": bool(a.get("iscrowd", 0))}
        if box[2] > 0 and box[3] > 0 and area > 0:
            out[place[a["image_id"]]].append(kept)
        elif isinstance(a["segmentation"], Mapping) or any(len(part) >= 6 for part in a["segmentation"]):
            hollow[place[a["image_id"]]].append(kept | {"area": a.get("area", area)})
    return out, hollow


def _measured(
    annotations: Sequence[Mapping[str, Any]], sizes: HostArray, file: pathlib.Path
) -> list[tuple[list[float], float]]:
    """Box and area of each annotation: its own, or its mask's; area 0 where the mask is empty."""

    def name(i: int) -> str:
        return f"{file}: annotation {annotations[i]['id']!r}"

    out, at = [], []
    for i, a in enumerate(annotations):
        mask = a.get("segmentation")
        if not isinstance(mask, (list, Mapping)):
            raise InputError(f"{name(i)} has the segmentation {str(mask)[:60]!r}: expected polygons or run lengths")
        empty = isinstance(mask, list) and all([len(polygons.corners(part, name(i))) < 3 for part in mask])
        box = a.get("bbox", [0, 0, 0, 0] if empty else None)
        area = 0 if empty else a.get("area")
        if box is not None and not (isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))):
            raise InputError(f"{name(i)} has the bbox {str(box)[:60]}: expected [x, y, width, height]")
        if area is not None and not (_is_finite(area) and area >= 0):
            raise InputError(f"{name(i)} has the area {area!r}: expected pixels")
        if isinstance(mask, Mapping) or box is None or area is None:  # run lengths are all read, to be checked
            at.append(i)
        out.append((box, area))
    for begin in range(0, len(at), 1024):
        part = at[begin : begin + 1024]
        masks = rle.pack(
            [annotations[i]["segmentation"] for i in part], sizes=sizes[part], name=lambda n, p=part: name(p[n])
        )
        for i, box, area in zip(part, rle.to_bbox(masks).tolist(), rle.area(masks).tolist(), strict=True):
            own_box, own_area = out[i]
            out[i] = (own_box if own_box is not None else box, own_area if own_area is not None and area else area)
    return out


def _check_box(key: Any, box: Sequence[float], size: Sequence[int], file: pathlib.Path) -> None:
    x, y, width, height = box
    inside = min(x, y) >= -_BEYOND and x + width <= size[1] + _BEYOND and y + height <= size[0] + _BEYOND
    if width < 0 or height < 0 or not inside:
        raise InputError(
            f"{file}: annotation {key!r} has the bbox {list(box)} [x, y, width, height], outside its image of "
            f"{size[1]}x{size[0]} (width x height)"
        )


def _is_known(key: object, table: Mapping[Any, Any]) -> bool:
    return isinstance(key, (int, str)) and key in table


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e18  # not NaN
