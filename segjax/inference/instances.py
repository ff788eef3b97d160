"""From images to detected objects at native size: what ``segjax.predict`` and the evaluation of instances share.

The forward pass is compiled once per canvas and gives boxes, scores and small masks of a fixed number of rows. The rest
is done on the host, since the numbers and sizes of objects differ: boxes back to native pixels, masks pasted inside
their boxes alone and run-length encoded at once (``mask_windows``), so that no array of [n, H, W] comes to be.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from segjax import augment
from segjax.data import canvas
from segjax.data.fitted_instances import nearest_canvas
from segjax.inference import evaluation, mask_windows, whole_image
from segjax.types import (
    BOXES,
    CLASSES,
    CONTENT_SIZE,
    DATA_AXIS,
    IMAGE,
    MASKS,
    SCORES,
    VALID,
    Array,
    Batch,
    HostArray,
    Variables,
)

_KEYS = (BOXES, SCORES, CLASSES, MASKS, VALID)  # of the outputs of a model of instances
_SPLIT, _WHOLE = PartitionSpec(DATA_AXIS), PartitionSpec()


@dataclasses.dataclass(frozen=True, eq=False)
class Detections:
    """Objects of one image, in its own pixels.

    Attributes:
        image_size: (H, W).
        boxes: f32[n, 4], (x0, y0, x1, y1), corners at pixel edges, within the image.
        scores: f32[n], best first as the model gives them.
        classes: i32[n], ids of object classes, from 0.
        masks: n run lengths, {"size": [H, W], "counts": compressed string}, see ``segjax.rle``.
    """

    image_size: tuple[int, int]
    boxes: HostArray
    scores: HostArray
    classes: HostArray
    masks: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.scores)


def make_forward(
    apply: evaluation.Apply, *, mean: tuple[float, ...], std: tuple[float, ...], mesh: Mesh | None = None
) -> Callable[[Variables, Batch], dict[str, Array]]:
    """Makes the function from a batch of canvases to a model's detections there.

    Args:
        apply: apply(variables, image f32[B, H, W, 3], train=False, content_size=i32[B, 2]) -> {"boxes" f32[B, D, 4],
            "scores" f32[B, D], "classes" i32[B, D], "masks" f32[B, D, m, m], "valid" bool[B, D], ...}.
        mean: of each channel, subtracted from the image in [0, 1].
        std: of each channel, which divides it then.
        mesh: devices to split the batch over (axis "data"); None: the default device.

    Returns:
        forward(variables, batch) -> these five, on the device; compiled once per shape. Of the batch it takes "image"
        u8[B, H, W, 3] and "content_size"; the rows must divide evenly among the devices.
    """

    def forward(variables: Variables, image: Array, content: Array) -> dict[str, Array]:
        normalised = augment.normalise({IMAGE: image}, mean, std)[IMAGE]
        outputs = apply(variables, normalised, train=False, content_size=content)
        return {key: outputs[key] for key in _KEYS}

    if mesh is not None:
        # Rows are independent; the check of what varies over devices would only refuse the loops of a model's NMS.
        specs = {"in_specs": (_WHOLE, _SPLIT, _SPLIT), "out_specs": _SPLIT}
        forward = jax.shard_map(forward, mesh=mesh, check_vma=False, **specs)
    run = jax.jit(forward)
    return lambda variables, batch: run(variables, batch[IMAGE], batch[CONTENT_SIZE])


def detections_of(
    outputs: Mapping[str, HostArray],
    *,
    content_size: tuple[int, int],
    native_size: tuple[int, int],
    first_class: int = 0,
    threshold: float = 0.0,
    paste_rule: str = "torchvision",
) -> Detections:
    """The detections of one image, from the model's on the canvas to those in the image's own pixels.

    Args:
        outputs: "boxes" f32[D, 4] in pixels of the canvas, "scores" f32[D], "classes" i32[D], "masks" f32[D, m, m],
            "valid" bool[D]; host arrays.
        content_size: rows and columns of the canvas that the image occupies, from the top left.
        native_size: (H, W) of the image.
        first_class: the number by which the model calls class 0.
        threshold: scores below it are left out.
        paste_rule: "torchvision" or "detectron2", see ``mask_windows.paste``.

    Returns:
        the valid rows in their order, boxes multiplied by native / content (each axis) and clipped to the image; rows
        whose box is empty then are left out. A mask may be empty.

    Raises:
        ValueError: unknown rule.
    """
    if paste_rule not in mask_windows.PASTE_RULES:
        raise ValueError(f"paste_rule={paste_rule!r}: expected one of {', '.join(mask_windows.PASTE_RULES)}")
    rows, columns = native_size
    scale = np.float32(native_size) / np.float32(content_size)
    boxes = np.asarray(outputs[BOXES], np.float32) * np.tile(scale[::-1], 2)
    boxes = np.clip(boxes, np.float32(0), np.array([columns, rows, columns, rows], np.float32))
    scores = np.asarray(outputs[SCORES], np.float32)
    kept = np.asarray(outputs[VALID]) & (scores >= threshold) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    kept = np.flatnonzero(kept)
    windows = (mask_windows.paste(outputs[MASKS][i], boxes[i], native_size, rule=paste_rule) for i in kept)
    return Detections(
        image_size=(int(rows), int(columns)),
        boxes=boxes[kept],
        scores=scores[kept],
        classes=np.asarray(outputs[CLASSES])[kept].astype(np.int32) - np.int32(first_class),
        masks=tuple(mask_windows.encode(window, native_size) for window in windows),
    )


def make_predict_instances(
    apply: evaluation.Apply,
    variables: Variables,
    *,
    sizes: Sequence[tuple[int, int]],
    fit: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int,
    first_class: int = 0,
    threshold: float = 0.0,
    paste_rule: str = "torchvision",
    mesh: Mesh | None = None,
) -> Callable[[Sequence[HostArray]], list[Detections]]:
    """Makes the function from images to the objects in them.

    Args:
        apply: as ``make_forward``.
        variables: {"params", "batch_stats"}.
        sizes: (H, W) of each canvas; an image goes onto the one that ``choose_canvas`` names.
        fit: as ``data.canvas``; under "crop" (no resizing) an image larger than every canvas gets one of its own size,
            rounded up.
        mean: as ``make_forward``.
        std: as ``make_forward``.
        batch_size: rows of a forward pass; fewer images are filled up, so that a canvas is compiled for once.
        first_class: as ``detections_of``.
        threshold: as ``detections_of``.
        paste_rule: as ``detections_of``.
        mesh: as ``make_forward``.

    Returns:
        predict(images u8[h, w, 3] of any sizes and any number) -> Detections of each.

    Raises:
        ValueError: unknown fit or rule, or no sizes.
    """
    if fit not in canvas.FITS or paste_rule not in mask_windows.PASTE_RULES or not sizes:
        raise ValueError(
            f"fit={fit!r}, paste_rule={paste_rule!r}, {len(sizes)} sizes: expected one of {', '.join(canvas.FITS)}; "
            f"one of {', '.join(mask_windows.PASTE_RULES)}; at least one size"
        )
    forward = make_forward(apply, mean=mean, std=std, mesh=mesh)
    variables = evaluation.place_variables(variables, mesh)
    options = {"first_class": first_class, "threshold": threshold, "paste_rule": paste_rule}

    def start(images: Sequence[HostArray], size: tuple[int, int]) -> tuple[dict[str, Any], dict[str, Array]]:
        """A group's batch and its outputs, which the device may still be working on."""
        batch = whole_image.fitted_batch(images, size, fit, batch_size)
        return batch, forward(variables, evaluation.place_batch(batch, mesh))

    def finish(batch: Batch, outputs: Mapping[str, Array]) -> list[Detections]:
        return batch_detections(outputs, batch, **options)

    def predict(images: Sequence[HostArray]) -> list[Detections]:
        """Detections of each image at its own size."""
        found: dict[int, Detections] = {}
        waiting = None
        for size, members in _groups(images, sizes, fit, batch_size):
            running = (members, *start([images[i] for i in members], size))
            if waiting is not None:  # its masks are pasted while the device works on this group
                found.update(zip(waiting[0], finish(*waiting[1:]), strict=True))
            waiting = running
        if waiting is not None:
            found.update(zip(waiting[0], finish(*waiting[1:]), strict=True))
        return [found[i] for i in range(len(images))]

    return predict


def batch_detections(outputs: Mapping[str, Array], batch: Batch, **options: Any) -> list[Detections]:
    """The detections of each valid row of a batch.

    Args:
        outputs: of ``make_forward``'s function; more rows than the batch has are left out.
        batch: "valid" bool[B], "native_size", "content_size" i32[B, 2]; host arrays.
        **options: of ``detections_of``.
    """
    host = jax.device_get(dict(outputs))
    return [
        detections_of(
            {key: host[key][row] for key in _KEYS},
            content_size=tuple(batch[CONTENT_SIZE][row].tolist()),
            native_size=tuple(batch[evaluation.NATIVE_SIZE][row].tolist()),
            **options,
        )
        for row in np.flatnonzero(batch[VALID])
    ]


def choose_canvas(image_size: tuple[int, int], sizes: Sequence[tuple[int, int]], fit: str) -> tuple[int, int]:
    """The canvas an image goes onto: that of ``fitted_instances.nearest_canvas``, as in ``data.instances``.

    Under "crop", where none holds it, its own size rounded up (``whole_image.bucket``) in each axis in which the
    nearest is too small.

    Args:
        image_size: (h, w).
        sizes: (H, W) of each canvas; of equals the first.
        fit: as ``data.canvas``.
    """
    nearest = sizes[nearest_canvas(image_size, sizes, fit)]
    return whole_image.canvas_size(tuple(nearest), fit, np.array([image_size]))


def _groups(
    images: Sequence[HostArray], sizes: Sequence[tuple[int, int]], fit: str, batch_size: int
) -> list[tuple[tuple[int, int], list[int]]]:
    """(canvas, numbers of at most batch_size images that go onto it)."""
    members: dict[tuple[int, int], list[int]] = {}
    for i, image in enumerate(images):
        members.setdefault(choose_canvas(image.shape[:2], sizes, fit), []).append(i)
    return [
        (size, numbers[i : i + batch_size])
        for size, numbers in members.items()
        for i in range(0, len(numbers), batch_size)
    ]
