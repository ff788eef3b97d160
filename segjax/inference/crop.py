"""Evaluation of a central window: the model sees it alone, and it alone is scored."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from segjax.inference.evaluation import NATIVE_SIZE, fit_labels
from segjax.types import CONTENT_SIZE, IMAGE, LABEL, VALID, Batch


def crop_batches(
    batches: Iterable[Batch], size: tuple[int, int], *, ignore_label: int, resolution: str
) -> Iterator[dict[str, Any]]:
    """The central window of each image, as batches whose label is its own: to be evaluated at resolution "native".

    Args:
        batches: of ``data.pipeline.eval_batches``.
        size: (rows, columns) of the window.
        ignore_label: fills the label around images that are smaller.
        resolution: "input" brings labels to the canvas first; "native" needs them there (fit="crop").

    Raises:
        ValueError: a label on another grid than its image.
    """
    for batch in batches:
        yield crop_batch(fit_labels(batch, ignore_label) if resolution == "input" else batch, size, ignore_label)


def crop_batch(batch: Batch, size: tuple[int, int], ignore_label: int) -> dict[str, Any]:
    """The central window of each image and of its label; an image that is smaller is whole, as it is on the canvas.

    Args:
        batch: as ``evaluate``, each label on the grid of its image (native_size = content_size); host arrays.
        size: (rows, columns) of the window.
        ignore_label: fills the label around smaller images.

    Returns:
        the batch with image u8[B, h, w, 3], label i32[B, h, w], at most the window's and the canvas' size.

    Raises:
        ValueError: a label on another grid.
    """
    native, content, valid = (np.asarray(batch[key]) for key in (NATIVE_SIZE, CONTENT_SIZE, VALID))
    if (native[valid] != content[valid]).any():
        raise ValueError('a window of labels on another grid than their images: use fit="crop" or resolution="input"')
    size = tuple(min(n, limit) for n, limit in zip(size, batch[IMAGE].shape[1:3], strict=True))
    images = np.empty((len(valid), *size, batch[IMAGE].shape[-1]), batch[IMAGE].dtype)
    labels = np.full((len(valid), *size), ignore_label, np.int32)
    starts = np.maximum(content - np.array(size), 0) // 2
    for row, (y, x) in enumerate(starts):
        images[row] = batch[IMAGE][row, y : y + size[0], x : x + size[1]]
        rows, columns = np.minimum(content[row], size)
        part = batch[LABEL][row, y : y + rows, x : x + columns]
        labels[row, : part.shape[0], : part.shape[1]] = part
    inside = np.minimum(content, np.array(size)).astype(np.int32)
    return {**batch, IMAGE: images, LABEL: labels, NATIVE_SIZE: inside, CONTENT_SIZE: inside}
