"""Progress: one live line on a terminal, few plain lines elsewhere."""

import io

from segjax.inference.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def run(stream, seconds, total=4):
    clock = Clock()
    progress = Progress(total, "predicted", stream, clock)
    for done in range(1, total + 1):
        clock.now += seconds
        progress(done)
        if done == 2:
            progress.say("a word")
    return stream.getvalue()


def test_plain_lines_are_few_and_end_with_the_total():
    assert run(io.StringIO(), 1.0).splitlines() == ["a word", "predicted 4/4 images, 1.0 images/s"]
    assert run(io.StringIO(), 6.0).splitlines() == [
        "a word",
        "predicted 3/4 images, 0.2 images/s, 6 s left",
        "predicted 4/4 images, 0.2 images/s",
    ]


def test_a_live_line_is_overwritten_and_stands_at_the_end():
    shown = run(Terminal(), 0.5)
    assert shown.split("\r\x1b[K") == [
        "",
        "predicted 1/4 images",
        "predicted 2/4 images, 2.0 images/s, 1 s left",
        "a word\npredicted 2/4 images, 2.0 images/s, 1 s left",
        "predicted 3/4 images, 2.0 images/s, 0 s left",
        "predicted 4/4 images, 2.0 images/s\n",
    ]


def test_a_live_line_is_not_redrawn_more_often_than_one_can_see():
    assert run(Terminal(), 0.01, total=20).count("images") < 8


def test_tiles_of_a_large_image_are_shown_now_and_then():
    for stream, expected in (
        (io.StringIO(), ["predicted 0/1 images, of the next 3/4 tiles", "predicted 1/1 images"]),
        (
            Terminal(),
            ["", *(f"predicted 0/1 images, of the next {n}/4 tiles" for n in (2, 3)), "predicted 1/1 images\n"],
        ),
    ):
        clock = Clock()
        progress = Progress(1, "predicted", stream, clock)
        for tile in range(1, 5):
            clock.now += 6.0
            progress.part(tile, 4)
        progress(1)
        assert (stream.getvalue().split("\r\x1b[K") if stream.isatty() else stream.getvalue().splitlines()) == expected
