"""From a dataset to batches: the same sequence for any number of processes, workers and restarts.

The order of a run is one endless sequence of examples: epoch after epoch, each a permutation drawn from (seed, epoch).
Batch s of the run is its positions s*B .. s*B + B-1, so that it depends on (seed, s) alone; process p of n builds rows
p*B/n .. of every batch. A restart names the step and nothing else. Batching comes before threads or processes, never
after: what these hand out is then whole batches in order, whatever their number.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import numpy as np
from absl import flags

from segjax.data import canvas, fitted
from segjax.types import CONTENT_SIZE, IMAGE, LABEL, VALID, WEIGHT, HostArray, InputError

WORKER_MODES = ("threads", "processes")
_ENDLESS = 2**50  # examples of a run; the length of grain's own endless repeat overflows under batches of one


class Batches:
    """An iterator of batches that knows its place and can be closed; also a context manager."""

    def __init__(self, iterator: Any, start: int = 0) -> None:
        self._iterator = iterator
        self.step = start  # the number of the next batch

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, HostArray]:
        if self._iterator is None:
            raise StopIteration
        try:
            batch = next(self._iterator)
        except BaseException:  # the end, or a bad record: either way no batch can follow
            self.close()
            raise
        self.step += 1
        return batch

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers; may be called twice."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None


def train_batches(
    dataset: Any,
    *,
    size: tuple[int, int],
    fit: str = "stretch",
    batch_size: int,
    seed: int,
    start_step: int = 0,
    num_steps: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 2,
    worker_mode: str = "threads",
    cache: bool = False,
) -> Batches:
    """Yields the training batches of a run from `start_step` on.

    Args:
      dataset: see `segjax.data`.
      size: (H, W) of the canvas.
      fit: "stretch", "pad" or "crop" (`canvas`); "crop" takes a window of larger pictures, drawn from (seed, position).
      batch_size: rows of the global batch; a multiple of `process_count`.
      seed: of the order; 0 .. 2^32 - 1.
      start_step: the number of the first batch.
      num_steps: the run's length: the last batch is number num_steps - 1; None: endless.
      process_index, process_count: which rows of each global batch are wanted.
      workers: threads or processes that read ahead; 0 reads in the caller's thread.
      worker_mode: "threads" or "processes" (which import the main module: guard it by ``if __name__ == "__main__"``).
      cache: keep the fitted examples in memory; it belongs to `dataset` and is shared by calls of one size and fit.
        Worker processes keep one each.

    Returns:
      An iterator of {"image": u8[B/n, H, W, 3], "label": i32[B/n, H, W], "valid": bool[B/n]}, and "weight":
      f32[B/n, H, W] where the set has `border_weight`; close it.

    Raises:
      InputError: an empty set, a batch that does not split over the processes; later on what the dataset raises.
      ValueError: an unknown `fit` or `worker_mode`, negative counts.
    """
    size = check(dataset, size, fit, batch_size, process_index, process_count, workers, worker_mode, start_step)
    source = fitted.on_canvas(dataset, size, fit, native_label=False, cache=cache)
    examples = order(source, seed)
    if fit == "crop":
        examples = examples.random_map(_Window(size))
    batches = examples.batch(batch_size // process_count, batch_fn=_stack)[process_index::process_count]
    return start(between(batches, start_step, num_steps), workers, worker_mode, start_step)


def eval_batches(
    dataset: Any,
    *,
    size: tuple[int, int],
    fit: str = "stretch",
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 2,
    worker_mode: str = "threads",
    cache: bool = False,
    pad_native_to: int = 64,
) -> Batches:
    """Yields every example exactly once, in order, with its label at native resolution.

    Rows beyond the last example fill the last batch: valid False, index -1, every label ignored. Every process makes
    ceil(N / batch_size) batches, and batches of one number have one shape on all processes.

    Args:
      dataset, size, fit, batch_size, process_index, process_count, workers, worker_mode, cache: as `train_batches`; but
        under "crop" a picture larger than the canvas is an error, for a part of it would not be counted.
      pad_native_to: rows and columns of the batch's labels are the largest of the batch, rounded up to this multiple.

    Returns:
      An iterator of {"image": u8[b, H, W, 3], "valid": bool[b], "label": i32[b, Hn, Wn], "native_size": i32[b, 2] (rows
      and columns of the label that are the picture's), "content_size": i32[b, 2] (the part of the canvas the image
      occupies), "index": i32[b]}, b = batch_size / process_count.

    Raises:
      InputError, ValueError: as `train_batches`.
    """
    size = check(dataset, size, fit, batch_size, process_index, process_count, workers, worker_mode)
    if pad_native_to < 1:
        raise ValueError(f"pad_native_to={pad_native_to}: expected 1 or more")
    source = fitted.on_canvas(dataset, size, fit, native_label=True, cache=cache)
    rows = _EvalRows(source, batch_size, process_index, process_count, pad_native_to)
    return start(grain.MapDataset.source(rows), workers, worker_mode)


def verify(
    dataset: Any,
    progress: Callable[[int, int], None] | None = None,
    *,
    size: tuple[int, int] | None = None,
    fit: str = "stretch",
    native_label: bool = False,
    cache: bool = False,
    workers: int | None = None,
) -> None:
    """Reads every example once, by threads, so that a bad file is found before training starts.

    Args:
      dataset: see `segjax.data`.
      progress: called with (examples read, examples) after each.
      size, fit: of the batches to come; with `size` the examples are fitted too, and kept where `cache` is on.
      native_label: False fills the cache of `train_batches`, True that of `eval_batches`.
      cache: keep what was read.
      workers: threads; None: one per processor.

    Raises:
      InputError: the first bad record, in the set's order.
    """
    source: Any = dataset
    if size is not None:
        source = fitted.on_canvas(dataset, tuple(size), fit, native_label=native_label, cache=cache)
    for _ in read_all(source, progress, workers):
        pass


def read_all(source: Any, progress: Callable[[int, int], None] | None, workers: int | None) -> Iterator[Any]:
    """Yields every example of `source` in order, read ahead by threads; `progress` and `workers` as of `verify`."""
    stop = threading.Event()
    length = len(source)

    def read(i: int) -> Any:
        return None if stop.is_set() else source[i]

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        futures = [pool.submit(read, i) for i in range(length)]
        futures.reverse()
        try:
            while futures:
                yield futures.pop().result()  # and lets go of it
                if progress is not None:
                    progress(length - len(futures), length)
        finally:
            stop.set()


def order(source: Any, seed: int) -> grain.MapDataset:
    """Returns the endless sequence of examples of a run: epoch after epoch, each a permutation drawn from it."""
    return grain.MapDataset.source(source).seed(seed).shuffle().repeat(_ENDLESS // len(source))


def between(batches: grain.MapDataset, start_step: int, num_steps: int | None) -> grain.MapDataset:
    """Returns the batches from number `start_step` to the last one, num_steps - 1 (None: endless)."""
    return batches[start_step : None if num_steps is None else max(num_steps, start_step)]


class _Window(grain.transforms.RandomMap):
    """Cuts a window of the canvas' size out of a larger picture."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def random_map(self, element: Mapping[str, HostArray], rng: np.random.Generator) -> dict[str, HostArray]:
        """Returns image, label and weight of one window, uniform over its positions."""
        rows, columns = element[LABEL].shape
        y = int(rng.integers(rows - self.size[0] + 1))
        x = int(rng.integers(columns - self.size[1] + 1))
        return {key: element[key][y : y + self.size[0], x : x + self.size[1]] for key in element}


class _EvalRows:
    """Batch number `step` of the evaluation: this process' rows of it."""

    def __init__(self, source: fitted.Fitted, batch_size: int, index: int, count: int, multiple: int) -> None:
        self.source = source
        self.batch_size = batch_size
        self.rows = batch_size // count
        self.first = index * self.rows
        self.alone = count == 1
        self.multiple = multiple

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def __getitem__(self, step: int) -> dict[str, HostArray]:
        start = step * self.batch_size + self.first
        examples = [self.source[i] for i in range(start, min(start + self.rows, len(self.source)))]
        height, width = self._native_size(step, examples)
        batch = {
            IMAGE: np.zeros((self.rows, *self.source.size, 3), np.uint8),
            LABEL: np.full((self.rows, height, width), self.source.dataset.ignore_label, np.int32),
            VALID: np.arange(self.rows) < len(examples),
            "native_size": np.tile(np.array([height, width], np.int32), (self.rows, 1)),
            CONTENT_SIZE: np.tile(np.array(self.source.size, np.int32), (self.rows, 1)),
            "index": np.full(self.rows, -1, np.int32),
        }
        for row, example in enumerate(examples):
            h, w = example[LABEL].shape
            batch[IMAGE][row] = example[IMAGE]
            batch[LABEL][row, :h, :w] = example[LABEL]
            batch["native_size"][row] = h, w
            batch[CONTENT_SIZE][row] = example[CONTENT_SIZE]
            batch["index"][row] = start + row
        return batch

    def _native_size(self, step: int, examples: list[Mapping[str, HostArray]]) -> tuple[int, int]:
        """Returns the batch's label size: that of the global batch, so that all processes agree."""
        sizes = [example[LABEL].shape for example in examples]
        if not self.alone:
            dataset = self.source.dataset
            last = min((step + 1) * self.batch_size, len(dataset))
            size_of = getattr(dataset, "label_size", None) or (lambda i: self.source[i][LABEL].shape)
            sizes = [size_of(i) for i in range(step * self.batch_size, last)]
        height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
        return tuple(-(-n // self.multiple) * self.multiple for n in (height, width))


def _stack(examples: list[Mapping[str, HostArray]]) -> dict[str, HostArray]:
    labels = np.empty((len(examples), *examples[0][LABEL].shape), np.int32)
    for row, example in enumerate(examples):
        labels[row] = example[LABEL]
    batch = {key: np.stack([e[key] for e in examples]) for key in (IMAGE, WEIGHT) if key in examples[0]}
    return {**batch, LABEL: labels, VALID: np.ones(len(examples), bool)}


def start(batches: grain.MapDataset, workers: int, worker_mode: str, step: int = 0) -> Batches:
    """Returns the iterator over finished batches, the first of which is number `step`."""
    threads = workers if worker_mode == "threads" else 0
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    iterable = batches.to_iter_dataset(options)
    if worker_mode == "processes" and workers:
        if not flags.FLAGS.is_parsed():  # grain reads a flag of its own, and outside absl's app.run nobody parsed any
            flags.FLAGS.mark_as_parsed()
        iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    return Batches(iter(iterable), step)


def check(
    dataset: Any,
    size: tuple[int, int],
    fit: str,
    batch_size: int,
    process_index: int,
    process_count: int,
    workers: int,
    worker_mode: str,
    start_step: int = 0,
) -> tuple[int, int]:
    """Returns `size` as integers, or raises what `train_batches` says of impossible options."""
    if fit not in canvas.FITS:
        raise ValueError(f"fit={fit!r}: expected one of {', '.join(canvas.FITS)}")
    if worker_mode not in WORKER_MODES:
        raise ValueError(f"worker_mode={worker_mode!r}: expected one of {', '.join(WORKER_MODES)}")
    if workers < 0:
        raise ValueError(f"workers={workers}: expected 0 or more")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size={size}: expected (height, width), both at least 1")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index}: expected 0 .. {process_count - 1}")
    if batch_size < 1 or batch_size % process_count:
        raise InputError(
            f"a batch of {batch_size} cannot be split over {process_count} processes: use a multiple of {process_count}"
        )
    if start_step < 0:
        raise ValueError(f"start_step={start_step}: expected 0 or more")
    if len(dataset) == 0:
        raise InputError(f"{dataset!r}: the split is empty")
    return tuple(int(n) for n in size)
