"""What one sees while a run goes: a live line on a terminal, plain lines elsewhere."""

import collections
import math
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

import jax

_REDRAW_S = 0.1  # a live line is redrawn at most this often
_PLAIN_S = 15.0  # a plain line is printed at most this often
_WINDOW = 50  # steps over which the speed is measured
_CLEAR = "\r\x1b[K"


class Progress:
    """The line of one run. Everything that is printed during a run goes through ``say``, so nothing mixes with it.

    Args:
      total_steps: steps of the whole run.
      batch_size: images of a step, of all processes together.
      stream: where to print; default standard output. A live line if it is a terminal.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        batch_size: int,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._batch_size = total_steps, batch_size
        self._stream = sys.stdout if stream is None else stream
        self._silent = jax.process_index() != 0
        self._live = self._stream.isatty()
        self._clock = clock
        self._shown = ""  # the live line as it stands
        self._drawn_at = -math.inf
        self._first: tuple[float, int] | None = None  # time and number of the first step that was finished here
        self._window: collections.deque[tuple[float, int]] = collections.deque(maxlen=_WINDOW)
        self._score = ("", math.nan)

    def say(self, text: str) -> None:
        """Prints a line of its own, above the live one."""
        if self._silent:
            return
        self._stream.write(f"{_CLEAR if self._shown else ''}{text}\n{self._shown}")
        self._stream.flush()

    def reading(self, split: str, done: int, of: int) -> None:
        """Shows that the files of a split are being read."""
        self._show(f"reading {split}: {done}/{of}", last=done == of, plain=done == of)

    def start(self, step: int) -> None:
        """Says that steps follow, the first of them after ``step``; nothing is timed before one is finished."""
        self._window.clear()
        self._first = None
        self._show(f"step {step}/{self._total}", plain=False)

    def step(self, step: int, loss: float) -> None:
        """Shows a finished step."""
        now = self._clock()
        self._window.append((now, step))
        self._first = self._first or (now, step)
        self._show(
            line(
                step,
                self._total,
                images_per_second=self.images_per_second(),
                loss=loss,
                score=self._score,
                remaining=self._remaining(now, step),
                memory=device_memory(),
            ),
            last=step == self._total,
        )

    def images_per_second(self) -> float:
        """Speed over the last steps; NaN before two are finished."""
        if len(self._window) < 2:
            return math.nan
        (begin, first), (end, last) = self._window[0], self._window[-1]
        return (last - first) * self._batch_size / max(end - begin, 1e-9)

    def evaluating(self, done: int, of: int) -> None:
        """Shows that an evaluation is under way."""
        self._show(f"evaluating: {done}/{of} images", plain=False)

    def evaluated(self, step: int, name: str, score: float) -> None:
        """Prints what an evaluation found, by its name; the time it took does not count as the time of a step."""
        self._score = (name, score)
        if self._shown:  # it is out of date
            self._stream.write(_CLEAR)
            self._shown = ""
        self.say(f"step {step}/{self._total}  validation {name} {score:.4f}")
        self._window.clear()

    def close(self) -> None:
        """Ends the live line, so that what is printed next begins on a line of its own."""
        if self._shown and not self._silent:
            self._stream.write("\n")
            self._stream.flush()
        self._shown = ""

    def _remaining(self, now: float, step: int) -> float:
        begin, first = self._first or (now, step)
        return (now - begin) / (step - first) * (self._total - step) if step > first else math.nan

    def _show(self, text: str, *, last: bool = False, plain: bool = True) -> None:
        now = self._clock()
        wait = _REDRAW_S if self._live else _PLAIN_S
        if self._silent or (now - self._drawn_at < wait and not last) or not (self._live or plain):
            return
        self._drawn_at = now
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._shown = text[:width]
            self._stream.write(_CLEAR + self._shown)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()


def line(
    step: int,
    total: int,
    *,
    images_per_second: float,
    loss: float,
    score: tuple[str, float],
    remaining: float,
    memory: tuple[int, int] | None,
) -> str:
    """The line of a step, most important first; what is not known yet (NaN, None) is left out.

    Args:
      step: steps made.
      total: steps of the run.
      images_per_second: of training.
      loss: of this step.
      score: name and value of the last evaluation.
      remaining: seconds to the end.
      memory: bytes used and available on the first device.
    """
    parts = [f"step {step}/{total} ({100 * step // max(total, 1)}%)", f"loss {loss:.4f}"]
    if math.isfinite(score[1]):
        parts.append(f"last val {score[0]} {score[1]:.4f}")
    if math.isfinite(images_per_second):
        parts.append(f"{images_per_second:.1f} img/s")
    if math.isfinite(remaining):
        parts.append(f"{duration(remaining)} left")
    if memory is not None:
        parts.append(f"{memory[0] / 2**30:.1f}/{memory[1] / 2**30:.1f} GiB")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``42s``, ``3m 20s``, ``2h 05m``, ``3d 04h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def device_memory() -> tuple[int, int] | None:
    """Bytes in use and available on the first local device; None where the backend does not say (the CPU)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_in_use" not in stats or "bytes_limit" not in stats:
        return None
    return stats["bytes_in_use"], stats["bytes_limit"]
