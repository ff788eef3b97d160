"""What ``segjax.predict`` makes of each image: of a semantic model's class ids, of an instance model's objects."""

import dataclasses
import json
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from segjax.data.metadata import Classes
from segjax.inference import coco_results, effects, files, instance_pictures
from segjax.inference.instances import Detections
from segjax.types import HostArray, InputError


@dataclasses.dataclass(frozen=True)
class ClassIds:
    """Writes labels/*.png and overlays/*.png, and effects/*.png where classes are to stay sharp.

    Attributes:
        output: the folder.
        classes: names and colours.
        sharp: ids of the classes that the portrait effect keeps sharp; none: no effect.
    """

    output: pathlib.Path
    classes: Classes
    sharp: Collection[int] = ()

    def write(self, job: files.Job, image: HostArray, prediction: HostArray) -> HostArray:
        """Writes one image's files; returns the overlay without its legend."""
        if (prediction >= len(self.classes)).any():
            raise InputError(f"{job.source}: the model gives NaN: this checkpoint is of a run that went wrong")
        if self.sharp:
            mask = effects.semantic_mask(prediction, self.sharp)
            files.write_picture(self.output, files.EFFECTS, job, effects.portrait(image, mask))
        return files.write(self.output, job, image, prediction, self.classes)

    def finish(self) -> None:
        """Nothing is left to write."""

    @property
    def links(self) -> dict[str, str]:
        """For the page: what else there is of each image, by its folder."""
        return {"class ids": files.LABELS} | ({"effect": files.EFFECTS} if self.sharp else {})

    @property
    def written(self) -> str:
        """The names of what was written, for a person."""
        return f"labels/, overlays/{', effects/' if self.sharp else ''}"


@dataclasses.dataclass(frozen=True)
class Objects:
    """Writes overlays/*.png and detections.json, and effects/*.png where classes are to stay sharp.

    Attributes:
        output: the folder.
        classes: names.
        image_ids: {image: its number in the JSON}.
        category_ids: the number of class 0, 1, ... in the JSON.
        threshold: objects of at least this score are drawn; the JSON has all.
        sharp: as of ``ClassIds``.
    """

    output: pathlib.Path
    classes: Classes
    image_ids: dict[files.Job, int | str]
    category_ids: Sequence[int]
    threshold: float = 0.5
    sharp: Collection[int] = ()
    entries: dict[files.Job, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)

    def write(self, job: files.Job, image: HostArray, prediction: Detections) -> HostArray:
        """Writes one image's files; returns the overlay."""
        ids = {"image_id": self.image_ids[job], "category_ids": self.category_ids}
        found = coco_results.results(prediction, **ids)
        self.entries[job] = [{**entry, "file_name": job.source.name} for entry in found]
        drawn = instance_pictures.draw(
            image, instance_pictures.confident(prediction, self.threshold), self.classes.names
        )
        files.write_picture(self.output, files.OVERLAYS, job, drawn)
        if self.sharp:
            mask = effects.instance_mask(prediction, self.sharp, threshold=self.threshold)
            files.write_picture(self.output, files.EFFECTS, job, effects.portrait(image, mask))
        return drawn

    def finish(self) -> None:
        """Writes detections.json."""
        entries = [entry for job in self.image_ids for entry in self.entries.get(job, ())]
        coco_results.write(self.output / files.DETECTIONS, entries)

    @property
    def links(self) -> dict[str, str]:
        """For the page: what else there is of each image, by its folder."""
        return {"effect": files.EFFECTS} if self.sharp else {}

    @property
    def written(self) -> str:
        """The names of what was written, for a person."""
        return f"overlays/, {'effects/, ' if self.sharp else ''}{files.DETECTIONS}"


def numbers(
    jobs: Sequence[files.Job], classes: Classes, annotations: str
) -> tuple[dict[files.Job, int | str], tuple[int, ...]]:
    """The numbers of images and classes in COCO's JSON.

    Args:
        jobs: the images.
        classes: of the run.
        annotations: a COCO JSON whose "images" and "categories" have the numbers, by "file_name" (the end of the path,
            else the last part of it, if that is one image's alone) and by class name; "": images 1, 2, ... in their
            order, and the numbers of the set that was trained on (else 1, 2, ...).

    Returns:
        ({job: image id}, the category id of each class).

    Raises:
        InputError: the file cannot be read, or lacks an image or a class, or two images would have one number.
    """
    if not annotations:
        ids = classes.ids or range(1, len(classes) + 1)
        return {job: number for number, job in enumerate(jobs, start=1)}, tuple(ids)
    try:
        content = json.loads(pathlib.Path(annotations).read_text(encoding="utf-8"))
        images = {pathlib.PurePath(image["file_name"]).parts: image["id"] for image in content["images"]}
        categories = {category["name"]: int(category["id"]) for category in content["categories"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--annotations={annotations} cannot be read as COCO's JSON: {error!r}") from error
    for name in classes.names:
        if name not in categories:
            raise InputError(f"--annotations={annotations} has no category {name!r}; it has {', '.join(categories)}")
    return _image_ids(jobs, images, annotations), tuple(categories[name] for name in classes.names)


def _image_ids(
    jobs: Sequence[files.Job], images: Mapping[tuple[str, ...], int | str], annotations: str
) -> dict[files.Job, int | str]:
    named: dict[str, list[tuple[str, ...]]] = {}
    for parts in images:
        named.setdefault(parts[-1], []).append(parts)
    out: dict[files.Job, int | str] = {}
    taken: dict[int | str, files.Job] = {}
    for job in jobs:
        path = job.source.absolute().parts
        tail = next((path[i:] for i in range(len(path)) if path[i:] in images), None)
        alike = [tail] if tail else named.get(path[-1], [])
        if len(alike) != 1:
            why = f"{len(alike)} images {path[-1]!r}, none at the end of {job.source}" if alike else f"no {path[-1]!r}"
            raise InputError(f"--annotations={annotations} has {why}")
        out[job] = number = images[alike[0]]
        if number in taken:
            raise InputError(
                f"--annotations={annotations}: {taken[number].source} and {job.source} are both {number!r}"
            )
        taken[number] = job
    return out
