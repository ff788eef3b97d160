"""SIGTERM and Ctrl-C become a request to stop after the current step."""

import os
import signal
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """While entered, the first SIGTERM or SIGINT is remembered; a second SIGINT interrupts at once.

    In a multi-process run jax.distributed catches SIGTERM itself and all processes learn of it at the same step;
    a handler of our own would replace that one, so only a single process installs it.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        # Not print: a handler may run in the middle of one, and a buffered stream cannot be entered twice.
        os.write(1, f"\n{self.name}: stopping after this step; Ctrl-C again to stop at once\n".encode())

    @property
    def name(self) -> str:
        """What stopped the run, as the user knows it."""
        return {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}.get(self.signal, "nothing")

    def at(self, step: int) -> bool:
        """Whether to stop after ``step``; the same answer in every process."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None
