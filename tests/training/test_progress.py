"""What is printed on a terminal and elsewhere, by the clock."""

import io
import math

import pytest

from segjax.training.progress import Progress, duration, line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def screen(text: str) -> list[str]:
    """What a terminal shows after ``text``: carriage return and erase-to-end-of-line obeyed."""
    rows = []
    for row in text.split("\n"):
        shown = ""
        for part in row.split("\r"):
            shown = part.removeprefix("\x1b[K") if part.startswith("\x1b[K") else part + shown[len(part) :]
        rows.append(shown)
    return rows


def test_the_line_of_a_step():
    nothing = {"images_per_second": math.nan, "score": ("", math.nan), "remaining": math.nan, "memory": None}
    assert line(5, 900, loss=2.5, **nothing) == "step 5/900 (0%)  loss 2.5000"
    everything = line(
        450, 900, images_per_second=18.26, loss=0.5, score=("mIoU", 0.61237), remaining=200, memory=(2**30, 3 * 2**29)
    )
    assert everything == "step 450/900 (50%)  loss 0.5000  last val mIoU 0.6124  18.3 img/s  3m 20s left  1.0/1.5 GiB"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (200, "3m 20s"), (7500, "2h 05m"), (3 * 86400 + 4 * 3600, "3d 04h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_speed_is_that_of_the_last_steps_and_leaves_out_compiling_and_evaluating():
    clock = Clock()
    progress = Progress(total_steps=100, batch_size=8, stream=io.StringIO(), clock=clock)
    progress.start(0)
    clock.now += 60  # compiling
    progress.step(1, 1.0)
    assert math.isnan(progress.images_per_second())
    for step in (2, 3, 4):
        clock.now += 0.5
        progress.step(step, 1.0)
    assert progress.images_per_second() == pytest.approx(16)
    clock.now += 30
    progress.evaluated(4, "mIoU", 0.5)
    clock.now += 0.5
    progress.step(5, 1.0)
    clock.now += 0.25
    progress.step(6, 1.0)
    assert progress.images_per_second() == pytest.approx(32)


def test_a_terminal_shows_one_live_line_and_what_is_said_above_it(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    clock, stream = Clock(), Terminal()
    progress = Progress(total_steps=100, batch_size=8, stream=stream, clock=clock)
    progress.reading("train", 10, 20)
    clock.now += 1
    progress.say("found 20 images")
    for step in range(1, 4):
        clock.now += 1
        progress.step(step, 1.0 / step)
    progress.say("a word of warning")
    clock.now += 1
    progress.evaluating(5, 10)
    progress.close()
    print("the end", file=stream)
    assert screen(stream.getvalue()) == [
        "found 20 images",
        "a word of warning",
        "evaluating: 5/10 images",
        "the end",
        "",
    ]


def test_the_live_line_never_wraps(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    Progress(total_steps=10**6, batch_size=8, stream=stream, clock=Clock()).step(123456, 1.0)
    assert screen(stream.getvalue()) == ["step 123456/1000000"]


def test_elsewhere_plain_lines_come_now_and_then():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(total_steps=100, batch_size=8, stream=stream, clock=clock)
    for done in range(1, 21):
        progress.reading("train", done, 20)
    progress.start(0)
    for step in range(1, 101):
        clock.now += 1
        progress.step(step, 1.0)
        progress.evaluating(step, 100)
    progress.evaluated(100, "mIoU", 0.25)
    progress.close()
    printed = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()
    assert printed[0] == "reading train: 20/20"
    assert [row.split()[1] for row in printed[1:-1]] == [
        "15/100",
        "30/100",
        "45/100",
        "60/100",
        "75/100",
        "90/100",
        "100/100",
    ]
    assert printed[-1] == "step 100/100  validation mIoU 0.2500"
