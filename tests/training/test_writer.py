"""metrics.jsonl as the record of one run, TensorBoard files beside it, and neither TensorFlow nor PyTorch."""

import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from segjax.training.writer import METRICS, TENSORBOARD, Writer, read_metrics
from segjax.types import InputError


def lines(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / METRICS).read_text().splitlines()]


def test_every_call_is_one_line_and_is_there_at_once(tmp_path):
    with Writer(tmp_path, tensorboard=False) as writer:
        writer.scalars(25, {"train/loss": np.float32(0.5), "train/grad_norm": 2})
        assert [row | {"time": 0} for row in lines(tmp_path)] == [
            {"step": 25, "time": 0, "train/loss": 0.5, "train/grad_norm": 2.0}
        ]
        writer.scalars(50, {"val/iou/car": math.nan, "val/miou": math.inf})
    assert lines(tmp_path)[1]["val/iou/car"] is None and lines(tmp_path)[1]["val/miou"] is None


def test_a_continued_run_reads_as_one_run(tmp_path):
    with Writer(tmp_path, tensorboard=False) as writer:
        for step in (10, 20, 30, 40):
            writer.scalars(step, {"train/loss": float(step)})
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"step": 20, "train/lo')  # a crash in the middle of a line
    with Writer(tmp_path, start_step=20, tensorboard=False) as writer:
        writer.scalars(30, {"train/loss": 0.5})
    assert [(row["step"], row["train/loss"]) for row in lines(tmp_path)] == [(10, 10.0), (20, 20.0), (30, 0.5)]
    with Writer(tmp_path, start_step=0, tensorboard=False):
        assert lines(tmp_path) == []


def test_reading_passes_over_what_is_no_record(tmp_path):
    assert read_metrics(tmp_path) == []
    (tmp_path / METRICS).write_text('{"step": 1}\n[]\n{"step": "x"}\n\n{"st')
    assert read_metrics(tmp_path) == [{"step": 1}]


def test_tensorboard_shows_the_same_numbers_and_the_continued_run_alone(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    image = np.zeros((4, 6, 3), np.uint8)
    with Writer(tmp_path) as writer:
        for step in (10, 20, 30):
            writer.scalars(step, {"train/loss": float(step), "val/iou/car": math.nan})
        writer.images(30, "val/predictions", image)
    with Writer(tmp_path, start_step=20) as writer:
        writer.scalars(25, {"train/loss": 0.5})
        writer.images(25, "val/predictions", image)
    events = accumulator.EventAccumulator(str(tmp_path / TENSORBOARD), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(10, 10.0), (20, 20.0), (25, 0.5)]
    assert [(event.step, event.width, event.height) for event in events.Images("val/predictions")] == [(25, 6, 4)]


def test_a_full_disk_names_the_folder(tmp_path, monkeypatch):
    class Full:
        def write(self, _: bytes) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    writer = Writer(tmp_path, tensorboard=False)
    writer._file.close()
    monkeypatch.setattr(writer, "_file", Full())
    with pytest.raises(InputError, match=f"disk full while writing {tmp_path}"):
        writer.scalars(1, {"train/loss": 1.0})


WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "torch"):
            raise AssertionError(f"imports {name}")

sys.meta_path.insert(0, Refuse())
import numpy as np
from segjax.training.writer import Writer
with Writer(sys.argv[1]) as writer:
    writer.scalars(1, {"train/loss": 1.0})
    writer.images(1, "val/predictions", np.zeros((4, 4, 3), np.uint8))
from segjax.training import report
report.write(sys.argv[1])
"""


def test_neither_tensorflow_nor_pytorch_is_imported(tmp_path):
    done = subprocess.run([sys.executable, "-c", WITHOUT, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / TENSORBOARD).iterdir())
