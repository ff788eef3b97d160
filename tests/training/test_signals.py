"""Signals become a request, and the previous handlers come back."""

import os
import signal

import pytest

from segjax.training.signals import StopRequest


@pytest.mark.parametrize("number, name", [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_is_remembered_until_asked(number, name):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.at(1)
        os.kill(os.getpid(), number)
        assert stop.at(2) and stop.signal == number and stop.name == name
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
