"""From a set of instances to batches: image, boxes, classes and masks in a compact form, padded to fixed sizes.

The order is ``pipeline``'s. An image comes onto its canvas as `canvas` says, its boxes with it; each mask is cut out by
its own box and resampled (``mask_crops``). An image has `max_instances` rows for its objects, in the order of the set;
rows left over are zeros and BOXES_VALID False. Of more objects the largest stay, by the area of their box, and the log
says so once: what is left out counts as background, so `max_instances` is best the number that `verify` returns.

Several canvases ("buckets", say one upright, one lying) save padding at the price of one compilation each. An image
goes to the canvas whose aspect is nearest to its own, a batch holds images of one canvas. Each canvas has an endless
order of its own; the batches take turns, evenly, in proportion to the numbers of images, so that batch s depends on
(seed, s) alone and each canvas comes round once an epoch, up to one batch.

A set of instances has, beside what ``segjax.data`` asks for, ``image_size(i) -> (H, W)`` and ``__getitem__(i) ->
{"image": u8[H, W, 3], "boxes": f32[n, 4], "classes": i32[n], "crowd": bool[n], "masks": n run lengths or [H, W]}``.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from segjax.data import fitted, pipeline
from segjax.data.fitted_instances import INDEX, NATIVE_SIZE, OBJECTS, Fitted
from segjax.types import (
    BOXES,
    BOXES_VALID,
    CLASSES,
    CONTENT_SIZE,
    CROWD,
    IMAGE,
    MASK_BOXES,
    MASKS,
    VALID,
    HostArray,
)

MASK_SIZE = 56  # rows and columns of a compact mask: twice those of the targets of a mask head

_LENGTH = 2**48  # batches of a run
_log = logging.getLogger(__name__)


def train_batches(
    dataset: Any,
    *,
    size: tuple[int, int] | None = None,
    sizes: Sequence[tuple[int, int]] = (),
    fit: str = "stretch",
    max_instances: int = 100,
    mask_size: int = MASK_SIZE,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    num_steps: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 2,
    worker_mode: str = "threads",
    cache: bool = False,
) -> pipeline.Batches:
    """Yields the training batches of a run from `start_step` on.

    Args:
      dataset: a set of instances, see the module.
      size: (H, W) of the canvas; or
      sizes: of several canvases.
      fit: "stretch", "pad" or "crop"; "crop" takes a window of larger images, drawn from (seed, position): objects
        outside are dropped, boxes clipped, mask boxes left as they are.
      max_instances: N, rows for the objects of an image.
      mask_size: S, rows and columns of a compact mask.
      batch_size, seed, start_step, num_steps, process_index, process_count, workers, worker_mode, cache: as of
        ``pipeline.train_batches``; the cache keeps masks in their compact form.

    Returns:
      An iterator of {"image": u8[b, H, W, 3], "boxes": f32[b, N, 4] within the image's part of the canvas,
      "classes": i32[b, N], "crowd": bool[b, N], "boxes_valid": bool[b, N], "masks": u8[b, N, S, S], "mask_boxes":
      f32[b, N, 4], "content_size": i32[b, 2], "valid": bool[b]}, b = batch_size / process_count; close it.

    Raises:
      InputError: an empty set, a batch that does not split over the processes; later on what the dataset raises.
      ValueError: an unknown `fit` or `worker_mode`, numbers out of range, none or both of size and sizes.
    """
    options = (fit, batch_size, process_index, process_count, workers, worker_mode, start_step)
    sizes = _check(dataset, size, sizes, options, max_instances, mask_size, least=1)
    source = Fitted(dataset, sizes, fit, mask_size, cache=cache)
    stack = _Stack(source, max_instances)
    parts = []
    for indices, one in zip(source.buckets, sizes, strict=True):
        examples = pipeline.order(_Part(source, indices), seed) if len(indices) else None
        if len(indices) and fit == "crop":
            examples = examples.random_map(_Window(one))
        parts.append(examples.batch(batch_size // process_count, batch_fn=stack) if len(indices) else None)
    turns = _Turns(parts, [len(indices) for indices in source.buckets], process_index, process_count)
    batches = pipeline.between(grain.MapDataset.source(turns), start_step, num_steps)
    return pipeline.start(batches, workers, worker_mode, start_step)


def eval_batches(
    dataset: Any,
    *,
    size: tuple[int, int] | None = None,
    sizes: Sequence[tuple[int, int]] = (),
    fit: str = "stretch",
    max_instances: int = 0,
    mask_size: int = MASK_SIZE,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 2,
    worker_mode: str = "threads",
    cache: bool = False,
) -> pipeline.Batches:
    """Yields every example exactly once, one canvas after the other and in order within each.

    Rows beyond the last example of a canvas fill its last batch: valid False, index -1. All processes make as many
    batches, and batches of one number have one shape. The truth is the dataset's, by index: a score needs it whole.

    Args:
      dataset, size, sizes, fit, mask_size, batch_size, process_index, process_count, workers, worker_mode, cache: as
        of `train_batches`; but under "crop" an image larger than its canvas is an error.
      max_instances: rows for the objects of an image; 0: none, and no mask is decoded.

    Returns:
      An iterator of what `train_batches` yields, and "native_size": i32[b, 2], (H, W) of the image in its file, and
      "index": i32[b].

    Raises:
      InputError, ValueError: as `train_batches`.
    """
    options = (fit, batch_size, process_index, process_count, workers, worker_mode)
    sizes = _check(dataset, size, sizes, options, max_instances, mask_size, least=0)
    source = Fitted(dataset, sizes, fit, mask_size if max_instances else 0, cache=cache)
    rows = _EvalRows(source, _Stack(source, max_instances), batch_size, process_index, process_count)
    return pipeline.start(grain.MapDataset.source(rows), workers, worker_mode)


def verify(
    dataset: Any,
    progress: Callable[[int, int], None] | None = None,
    *,
    size: tuple[int, int] | None = None,
    sizes: Sequence[tuple[int, int]] = (),
    fit: str = "stretch",
    mask_size: int = MASK_SIZE,
    cache: bool = False,
    workers: int | None = None,
) -> int:
    """Reads every example once, masks too, by threads, so that a bad file is found before training starts.

    Args:
      dataset: see the module.
      progress: called with (examples read, examples) after each.
      size or sizes, fit, mask_size: of the batches to come; with a size the examples are fitted, and kept where
        `cache` is on.
      cache: keep what was read.
      workers: threads; None: one per processor.

    Returns:
      The largest number of objects of an image: no object is left out where `max_instances` is as large.

    Raises:
      InputError: the first bad record, in the set's order.
    """
    # Whatever the canvas, fitting decodes every mask; a small one keeps it cheap.
    sizes = tuple(tuple(one) for one in sizes) or (((32, 32) if size is None else tuple(size)),)
    source = Fitted(dataset, sizes, fit, mask_size, cache=cache)
    return max((len(one[CLASSES]) for one in pipeline.read_all(source, progress, workers)), default=0)


class _Part:
    """The examples of one canvas."""

    def __init__(self, source: Fitted, indices: HostArray) -> None:
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Mapping[str, HostArray]:
        return self.source[int(self.indices[i])]


class _Window(grain.transforms.RandomMap):
    """Cuts a window of the canvas' size out of a larger image, uniform over its positions."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def random_map(self, element: Mapping[str, HostArray], rng: np.random.Generator) -> dict[str, HostArray]:
        """Returns the example with its image, boxes and CONTENT_SIZE those of the window."""
        rows, columns = element[IMAGE].shape[:2]
        y = int(rng.integers(rows - self.size[0] + 1))
        x = int(rng.integers(columns - self.size[1] + 1))
        offset = np.array([x, y, x, y], np.float32)
        return {
            **element,
            IMAGE: element[IMAGE][y : y + self.size[0], x : x + self.size[1]],
            CONTENT_SIZE: np.minimum(element[CONTENT_SIZE], np.array(self.size, np.int32)),
            BOXES: element[BOXES] - offset,
            MASK_BOXES: element[MASK_BOXES] - offset,
        }


class _Stack:
    """Makes a batch of examples: boxes clipped, objects without a visible box left out, the others in N rows."""

    def __init__(self, source: Fitted, max_instances: int) -> None:
        self.source, self.max_instances = source, max_instances
        self.said = False

    def __call__(self, examples: Sequence[Mapping[str, HostArray]]) -> dict[str, HostArray]:
        rows, count, cells = len(examples), self.max_instances, self.source.mask_size
        batch = {
            IMAGE: np.stack([example[IMAGE] for example in examples]),
            CONTENT_SIZE: np.stack([example[CONTENT_SIZE] for example in examples]),
            VALID: np.ones(rows, bool),
            BOXES: np.zeros((rows, count, 4), np.float32),
            CLASSES: np.zeros((rows, count), np.int32),
            CROWD: np.zeros((rows, count), bool),
            BOXES_VALID: np.zeros((rows, count), bool),
            MASKS: np.zeros((rows, count, cells, cells), np.uint8),
            MASK_BOXES: np.zeros((rows, count, 4), np.float32),
        }
        for row, example in enumerate(examples):
            height, width = example[CONTENT_SIZE]
            boxes = np.clip(example[BOXES], 0, np.array([width, height, width, height], np.float32))
            kept = self._kept(boxes, int(example[INDEX]))
            batch[BOXES][row, : len(kept)] = boxes[kept]
            batch[BOXES_VALID][row, : len(kept)] = True
            for key in (CLASSES, CROWD, MASKS, MASK_BOXES):
                batch[key][row, : len(kept)] = example[key][kept]
        return batch

    def _kept(self, boxes: HostArray, index: int) -> HostArray:
        """Which objects get a row, in ascending order."""
        sides = boxes[:, 2:] - boxes[:, :2]
        seen = np.flatnonzero((sides > 0).all(axis=1))
        if len(seen) <= self.max_instances:
            return seen
        if not self.said:
            self.said = True
            _log.warning(
                "%s has %d objects, more than data.max_instances=%d: the largest are kept, the others count as "
                "background (said once); set data.max_instances to the largest number of objects of an image",
                self.source.dataset.describe(index), len(seen), self.max_instances,
            )  # fmt: skip
        largest = np.argsort(-sides[seen].prod(axis=1), kind="stable")[: self.max_instances]
        return np.sort(seen[largest])


class _Turns:
    """All batches of a run, of one process: which canvas a batch is of goes round, evenly, in a fixed period."""

    def __init__(self, parts: Sequence[Any], counts: Sequence[int], index: int, count: int) -> None:
        self.parts, self.index, self.count = parts, index, count
        divisor = math.gcd(*counts)
        shares = np.array(counts) // divisor
        self.shares = [int(share) for share in shares]
        self.turns = np.zeros(sum(self.shares), np.int64)
        self.earlier = np.zeros_like(self.turns)  # batches of the same canvas earlier in the period
        due, had = np.zeros_like(shares), np.zeros_like(shares)
        for step in range(len(self.turns)) if len(shares) > 1 else ():
            due += shares
            self.turns[step] = turn = int(due.argmax())
            due[turn] -= len(self.turns)
            self.earlier[step] = had[turn]
            had[turn] += 1

    def __len__(self) -> int:
        return _LENGTH // self.count

    def __getitem__(self, step: int) -> dict[str, HostArray]:
        period, place = divmod(step, len(self.turns))
        turn = int(self.turns[place])
        number = period * self.shares[turn] + int(self.earlier[place])
        return self.parts[turn][number * self.count + self.index]


class _EvalRows:
    """Batch number `step` of the evaluation: this process' rows of it."""

    def __init__(self, source: Fitted, stack: _Stack, batch_size: int, index: int, count: int) -> None:
        self.source, self.stack, self.batch_size = source, stack, batch_size
        self.rows = batch_size // count
        self.first = index * self.rows
        starts = [range(0, len(indices), batch_size) for indices in source.buckets]
        self.batches = [(k, start) for k, of_bucket in enumerate(starts) for start in of_bucket]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: int) -> dict[str, HostArray]:
        bucket, start = self.batches[step]
        size = self.source.sizes[bucket]
        start += self.first
        examples = [self._read(int(i), size) for i in self.source.buckets[bucket][start : start + self.rows]]
        filled = len(examples)
        examples += [_empty(size, self.source.mask_size)] * (self.rows - filled)
        return {
            **self.stack(examples),
            VALID: np.arange(self.rows) < filled,
            **{key: np.stack([example[key] for example in examples]) for key in (NATIVE_SIZE, INDEX)},
        }

    def _read(self, i: int, size: tuple[int, int]) -> Mapping[str, HostArray]:
        example = self.source[i]
        if self.source.fit == "crop":
            fitted.refuse_a_part(self.source.dataset, i, tuple(example[NATIVE_SIZE].tolist()), size, "eval.sizes")
        return example


def _empty(size: tuple[int, int], cells: int) -> dict[str, HostArray]:
    """A row that only fills up."""
    whole = np.array(size, np.int32)
    example = {IMAGE: np.zeros((*size, 3), np.uint8), CONTENT_SIZE: whole, NATIVE_SIZE: whole}
    shapes = ((0, 4), (0,), (0,), (0, cells, cells), (0, 4))
    objects = {key: np.zeros(shape, np.float32) for key, shape in zip(OBJECTS, shapes, strict=True)}
    return {**example, **objects, INDEX: np.array(-1, np.int32)}


def _check(
    dataset: Any,
    size: tuple[int, int] | None,
    sizes: Sequence[tuple[int, int]],
    options: Sequence[Any],
    max_instances: int,
    mask_size: int,
    *,
    least: int,
) -> tuple[tuple[int, int], ...]:
    if (size is None) == (not sizes):
        raise ValueError(f"size={size}, sizes={sizes}: expected one of them")
    if max_instances < least:
        raise ValueError(f"max_instances={max_instances}: expected {least} or more")
    if mask_size < 1:
        raise ValueError(f"mask_size={mask_size}: expected 1 or more")
    return tuple(pipeline.check(dataset, tuple(one), *options) for one in (sizes or (size,)))
