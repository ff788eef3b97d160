"""Images of any size through a model that sees one canvas: what ``segjax.predict`` does."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from segjax.data import canvas
from segjax.inference import evaluation
from segjax.inference.views import WHOLE, Views
from segjax.types import CONTENT_SIZE, IMAGE, VALID, HostArray, Variables

_BUCKET = 64


def make_predict_images(
    apply: evaluation.Apply,
    variables: Variables,
    *,
    size: tuple[int, int],
    fit: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int,
    mesh: Mesh | None = None,
    views: Views = WHOLE,
) -> Callable[[Sequence[HostArray]], list[HostArray]]:
    """Makes the function from images to class ids; an image's ids are those that ``evaluation.evaluate`` counts.

    Args:
        apply: as ``evaluation.make_predict``.
        variables: {"params", "batch_stats"}.
        size: (H, W) of the canvas.
        fit: as ``data.canvas``; under "crop" (no resizing) a larger image gets a canvas of its own size, rounded up.
        mean: as ``evaluation.make_predict``.
        std: as ``evaluation.make_predict``.
        batch_size: images of one call, at most; a call with fewer compiles nothing anew.
        mesh: devices to split the batch over; None: the default device.
        views: as ``evaluation.make_predict``.

    Returns:
        predict(images u8[h, w, 3] of any sizes, 1 to batch_size of them) -> [h, w] class ids of each.
    """
    predict = evaluation.make_predict(apply, mean=mean, std=std, mesh=mesh, views=views)
    variables = evaluation.place_variables(variables, mesh)

    def predict_images(images: Sequence[HostArray]) -> list[HostArray]:
        """Class ids of each image at its own size."""
        native = np.array([image.shape[:2] for image in images], np.int32)
        batch = fitted_batch(images, canvas_size(size, fit, native), fit, batch_size)
        padded = tuple(bucket(n) for n in native.max(axis=0).tolist())
        ids = np.asarray(predict(variables, evaluation.place_batch(batch, mesh), padded))
        return [ids[i, :rows, :columns] for i, (rows, columns) in enumerate(native)]

    return predict_images


def bucket(length: int) -> int:
    """The padded length: the next multiple of 64, from 512 on of a quarter of the power of two at or below ``length``.

    At most 25% longer (from 256 on), and few different lengths: each costs a compilation of the second stage.
    """
    multiple = max(_BUCKET, 2 ** (length.bit_length() - 3))
    return -(-length // multiple) * multiple


def canvas_size(size: tuple[int, int], fit: str, native: HostArray) -> tuple[int, int]:
    """(H, W) of the canvas for images of the sizes i32[n, 2]: as given, or larger under "crop" where one needs it."""
    if fit != "crop":
        return size
    return tuple(
        n if n >= largest else bucket(int(largest)) for n, largest in zip(size, native.max(axis=0), strict=True)
    )


def fitted_batch(images: Sequence[HostArray], size: tuple[int, int], fit: str, batch_size: int) -> dict[str, Any]:
    """The images on the canvas, rows filled up with repeats of the last one that are not valid.

    Args:
        images: u8[h, w, 3] of any sizes, 1 to `batch_size` of them.
        size: (H, W) of the canvas.
        fit: as ``data.canvas``.
        batch_size: B.

    Returns:
        "image" u8[B, H, W, 3], "valid" bool[B], "native_size" and "content_size" i32[B, 2].
    """
    native = np.array([image.shape[:2] for image in images], np.int32)
    rows = np.minimum(np.arange(batch_size), len(images) - 1)
    content = np.array([canvas.content_size(tuple(n), size, fit) for n in native.tolist()], np.int32)
    return {
        IMAGE: np.stack([canvas.fit_image(image, size, fit) for image in images])[rows],
        VALID: np.arange(batch_size) < len(images),
        evaluation.NATIVE_SIZE: native[rows],
        CONTENT_SIZE: content[rows],
    }
