"""What a run writes down while it goes: ``metrics.jsonl``, which is the record, and TensorBoard files made of the same.

``metrics.jsonl`` has one JSON object a line, ``{"step": 25, "time": 1760000000.0, "train/loss": 1.23, ...}``; a number
that is not finite is null. A run that was stopped or killed and continued reads as one run: lines after the step it
continued from are removed, since it makes those steps again.
"""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from segjax.training.board import Board
from segjax.training.checkpoint_files import is_disk_full, write_atomically
from segjax.types import HostArray, InputError

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class Writer:
    """The record of one run; process 0 writes, the others do nothing.

    Args:
      workdir: folder of the run, made if absent.
      start_step: number of updates already made; what was recorded after it is removed.
      tensorboard: whether to write TensorBoard files besides.
    """

    def __init__(self, workdir: str | os.PathLike, *, start_step: int = 0, tensorboard: bool = True) -> None:
        self._file, self._board = None, None
        if jax.process_index() != 0:
            return
        self._path = pathlib.Path(workdir) / METRICS
        with _explained(self._path.parent):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _cut(self._path, start_step)
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115  closed by close()
            if tensorboard:
                self._board = Board(self._path.parent / TENSORBOARD, start_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers of a step, as one line.

        Args:
          step: number of updates made.
          values: {name: number}, names as ``train/loss``.

        Raises:
          InputError: the disk is full.
        """
        if self._file is None:
            return
        finite = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"step": int(step), "time": round(time.time(), 3)} | finite) + "\n"
        with _explained(self._path.parent):
            self._file.write(line.encode())  # one call: a line is there or not
            if self._board is not None:
                self._board.scalars(step, {name: value for name, value in finite.items() if value is not None})

    def images(self, step: int, name: str, image: HostArray) -> None:
        """Records a picture, u8[H, W, 3], in the TensorBoard files."""
        if self._board is not None:
            with _explained(self._path.parent):
                self._board.image(step, name, image)

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._board is not None:
            self._board.close()
        if self._file is not None:
            self._file.close()
        self._file, self._board = None, None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` as dicts, in order, without lines that a crash cut short; [] without the file."""
    path = pathlib.Path(workdir) / METRICS
    if not path.exists():
        return []
    rows = [_parse(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    return [row for row in rows if row is not None]


@contextlib.contextmanager
def _explained(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise InputError(f"disk full while writing {path}: make room and run the same command again") from error


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _cut(path: pathlib.Path, start_step: int) -> None:
    """Removes lines after ``start_step`` and lines that a crash cut short."""
    if path.exists():
        kept = [row for row in read_metrics(path.parent) if row["step"] <= start_step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
