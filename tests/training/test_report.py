"""The report: complete, self-contained, and there at any moment of a run."""

import html.parser
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from segjax.training import report, report_figures
from segjax.training.writer import Writer

VOID = {"meta", "img", "line", "path", "rect", "circle", "br"}


class Page(html.parser.HTMLParser):
    """Checks that every element is closed, and collects text and links to the outside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.text, self.outside = [], "", []
        self.feed(text)
        assert [tag for tag in self.open if tag not in ("tr", "th", "td")] == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.outside += [value for name, value in attrs if name in ("src", "href") and not value.startswith("data:")]

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID

    def handle_endtag(self, tag):
        while self.open[-1] in ("tr", "th", "td") and tag != self.open[-1]:  # HTML leaves these open
            self.open.pop()
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def run_folder(path, *, finished: bool):
    names = ["sky", "a <b>road</b>", "car"]
    (path / "config.json").write_text(
        json.dumps({"experiment": "my <run>", "train": {"steps": 100}, "data": {"root": "/x"}})
    )
    (path / "environment.json").write_text(json.dumps({"command": "python -m segjax.train --config=x.py", "git": None}))
    (path / "classes.json").write_text(json.dumps({"classes": names, "colors": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}))
    with Writer(path, tensorboard=False) as writer:
        for step in range(1, 101 if finished else 11):
            writer.scalars(step, {"train/loss": 1 / step, "train/learning_rate": 0.1, "train/images_per_second": 12.34})
            if step % 50 == 0:
                per_class = {"val/iou/sky": 0.5, "val/iou/a <b>road</b>": 0.25, "val/iou/car": math.nan}
                writer.scalars(step, {"val/miou": 0.9 - step / 200, "val/pixel_accuracy": 0.75} | per_class)
    if finished:
        (path / "summary.json").write_text(json.dumps({"step": 100, "miou": 0.4}))
        (path / "pictures").mkdir()
        noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
        Image.fromarray(noise[:8, :8]).save(path / "pictures" / "val-000.png")
        Image.fromarray(noise).save(path / "pictures" / "val-001.png")


def test_the_page_of_a_finished_run(tmp_path):
    run_folder(tmp_path, finished=True)
    text = report.write(tmp_path).read_text()
    page = Page(text)
    assert page.outside == []
    for expected in ("my <run>", "finished", "0.4000", "at step 100", "0.6500", "at step 50", "0.7500", "12.3"):
        assert expected in page.text
    for expected in ("a <b>road</b>", "0.500", "0.250", "absent", "data.root", "/x", "--config=x.py", "segjax.predict"):
        assert expected in page.text
    assert "<b>road" not in text and "rgb(4,5,6)" in text
    assert text.count("data:image/png") == 1 and text.count("data:image/jpeg") == 1
    assert len(re.findall("<svg ", text)) == 4


def test_the_page_of_a_run_that_goes_on(tmp_path):
    run_folder(tmp_path, finished=False)
    page = Page(report.write(tmp_path).read_text())
    assert "not finished" in page.text and "step 10 of 100" in page.text and "nothing recorded yet" in page.text
    assert "continue this run" in page.text


def test_the_page_of_an_empty_folder(tmp_path):
    assert "not finished" in Page(report.write(tmp_path).read_text()).text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.3, 2.4, [0, 0.5, 1, 1.5, 2, 2.5]),
        (-1.0, 1.0, [-1, -0.5, 0, 0.5, 1]),
        (0.0, 0.001, [0, 0.0002, 0.0004, 0.0006, 0.0008, 0.001]),
        (0.0, 1e-13, [0, 2e-14, 4e-14, 6e-14, 8e-14, 1e-13]),
        (1e-13, 3e-13, [1e-13, 1.5e-13, 2e-13, 2.5e-13, 3e-13]),
    ],
)
def test_ticks_are_round_and_enclose(low, high, expected):
    assert report_figures.ticks(low, high) == pytest.approx(expected, abs=0)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-12, 1e-20, 5e-324, 1e9, -1e30])
def test_ticks_of_a_constant_enclose_it(value):
    found = report_figures.ticks(value, value)
    assert len(found) >= 2 and found[0] <= value <= found[-1] and found[0] < found[-1]


@pytest.mark.parametrize("ends", [(0, 5e-14), (1e-15, 1e-14), (0, 5e-324), (1e9, 1e9 + 2e-7), (-1e-13, 1e-13)])
def test_a_curve_of_whatever_span_is_drawn(ends):
    drawing = report_figures.curve([(0, ends[0]), (100, ends[1])], label="loss")
    (path,) = re.findall(r'class="curve" d="M([^"]*)"', drawing)
    heights = [float(place.split()[1]) for place in path.split(" L")]
    assert 12 <= heights[1] <= heights[0] <= 212


def test_a_curve_goes_through_its_points():
    drawing = report_figures.curve([(0, 0.0), (50, math.nan), (100, 1.0)], label="loss", low=0.0, high=1.0)
    assert re.search(r'class="curve" d="M52.0 212.0 L446.0 12.0"', drawing)


def test_smoothing_is_the_mean_of_the_last_twentieth():
    values = np.random.default_rng(0).random(100)
    found = [y for _, y in report_figures.smoothed([(i, float(v)) for i, v in enumerate(values)])]
    np.testing.assert_allclose(found, [values[max(0, i - 4) : i + 1].mean() for i in range(100)])


def test_thinning_keeps_the_peaks_and_the_end():
    points = [(i, float(i == 7777)) for i in range(10_000)]
    thin = report_figures.thinned(points)
    assert len(thin) <= 401 and (7777, 1.0) in thin and thin[0][0] == 0 and thin[-1] == points[-1]
    assert thin == sorted(thin)
