"""How far a pass over images is: one live line on a terminal, a plain line now and then elsewhere."""

import shutil
import time
from collections.abc import Callable
from typing import TextIO

_LIVE_S, _PLAIN_S = 0.1, 10.0  # seconds between two lines
_CLEAR = "\r\x1b[K"


class Progress:
    """Counts images up to a total on a stream.

    Args:
        total: images to come.
        verb: what is done to them, such as "evaluated".
        stream: where the lines go; live if it is a terminal.
        clock: seconds, monotonic.
    """

    def __init__(self, total: int, verb: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._verb, self._stream, self._clock = total, verb, stream, clock
        self._live = stream.isatty()
        self._shown = ""  # the live line as it stands
        self._said: float | None = None  # when a line was last written
        self._first: tuple[float, int] | None = None  # the first call: it compiled, the speed is that of the others
        self._done = 0

    def __call__(self, done: int) -> None:
        """Shows that ``done`` images are finished, if it is time to."""
        now, last, self._done = self._clock(), done >= self._total, done
        if self._first is None:
            self._first = (now, done)
            self._said = None if self._live else now
        if not last and not self._due(now):
            return
        self._said = now
        text = f"{self._verb} {done}/{self._total} images"
        (begin, first) = self._first
        if done > first and now > begin:
            speed = (done - first) / (now - begin)
            text += f", {speed:.1f} images/s" + ("" if last else f", {(self._total - done) / speed:.0f} s left")
        self._write(text, last)

    def part(self, done: int, total: int) -> None:
        """Shows how many tiles of the image in work are finished, if it is time to."""
        now = self._clock()
        if self._said is None:
            self._said = now
        if done < total and self._due(now):
            self._said = now
            self._write(f"{self._verb} {self._done}/{self._total} images, of the next {done}/{total} tiles", False)

    def _due(self, now: float) -> bool:
        return self._said is None or now - self._said >= (_LIVE_S if self._live else _PLAIN_S)

    def _write(self, text: str, last: bool) -> None:
        if self._live:
            self._shown = "" if last else text[: shutil.get_terminal_size().columns - 1]
            self._stream.write(_CLEAR + (f"{text}\n" if last else self._shown))
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        """Writes a line of its own above the live one."""
        self._stream.write(f"{_CLEAR if self._shown else ''}{text}\n{self._shown}")
        self._stream.flush()
