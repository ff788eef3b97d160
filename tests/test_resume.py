"""A run that is stopped, killed or finds a damaged checkpoint ends with the very bits of one that is left in peace.

The real entry point, in processes of its own, on a few made images.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from segjax import train
from segjax.training import checkpoint_files

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS, EVERY = 60, 10
TIMEOUT_S = 400  # a loaded machine compiles slowly

EXPERIMENT = """
from segjax import config as configs

def get_config():
    config = configs.load_experiment({experiment!r}).copy_and_resolve_references()
    with config.unlocked():
        config.experiment = "tiny"
        config.data.update({{"root": {root!r}, "size": (32, 32), "verify": False}})
        config.augment.update({{"scale": (0.5, 2.0), "brightness": 0.2, "hue": 0.1}})
        config.model.update({{"backbone": "resnet18", "aspp_channels": 8, "decoder_channels": 8}})
        config.model.low_level_channels = 8
        config.model.width = 0.125
        config.optimizer.update({{"name": "adamw", "warmup_steps": 5}})
        config.train.update({{"steps": {steps}, "batch_size": 2, "ema_decay": 0.9}})
        config.eval.update({{"every_steps": {every} * 2, "batch_size": 2, "pictures": 1}})
        config.checkpoint.every_steps = {every}
        config.log.every_steps = 1
    return config.lock()
"""


class Runs:
    """Starts training processes that share one folder of images and one compilation cache."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        rng = np.random.default_rng(0)
        for split, count in (("train", 7), ("val", 3)):
            (folder / "data" / split).mkdir(parents=True)
            (folder / "data" / f"{split}annot").mkdir()
            for number in range(count):
                label = np.kron(rng.integers(0, 3, (4, 4)), np.ones((8, 8))).astype(np.uint8)
                image = (label[..., None] * 60 + rng.integers(0, 40, (32, 32, 3))).astype(np.uint8)
                Image.fromarray(image).save(folder / "data" / split / f"{number}.png")
                Image.fromarray(label).save(folder / "data" / f"{split}annot" / f"{number}.png")
        (folder / "data" / "classes.json").write_text('{"classes": ["sky", "road", "car"]}')
        experiment = str(ROOT / "experiments" / "deeplab.py") + ":folder"
        (folder / "tiny.py").write_text(
            EXPERIMENT.format(experiment=experiment, root=str(folder / "data"), steps=STEPS, every=EVERY)
        )

    def arguments(self, workdir: pathlib.Path, *more: str) -> list[str]:
        cache = f"--compilation_cache={self.folder / 'cache'}"
        return [f"--config={self.folder / 'tiny.py'}", f"--workdir={workdir}", cache, *more]

    def start(self, workdir: pathlib.Path) -> subprocess.Popen:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
        return subprocess.Popen(
            [sys.executable, "-m", "segjax.train", *self.arguments(workdir)],
            cwd=ROOT,
            env=environment | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, workdir: pathlib.Path) -> str:
        process = self.start(workdir)
        output = process.communicate(timeout=TIMEOUT_S)[0]
        assert process.returncode == 0, output
        return output

    def signalled(self, workdir: pathlib.Path, number: int, *, at_step: int) -> str:
        """Runs until a step is recorded, sends a signal, and returns what was printed; its status must say so."""
        process = self.start(workdir)
        deadline = time.monotonic() + TIMEOUT_S
        while recorded(workdir) < at_step and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(number)
        output = process.communicate(timeout=TIMEOUT_S)[0]
        assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), output
        return output


def recorded(workdir: pathlib.Path) -> int:
    path = workdir / "metrics.jsonl"
    rows = path.read_text().splitlines() if path.exists() else []
    return json.loads(rows[-1])["step"] if rows and rows[-1].endswith("}") else 0


def steps_of(workdir: pathlib.Path) -> list[int]:
    return checkpoint_files.list_steps(workdir / "checkpoints")


def record(workdir: pathlib.Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    rows = [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("time", "train/images_per_second")} for row in rows]


def assert_as_if_never_interrupted(workdir: pathlib.Path, reference: pathlib.Path) -> None:
    assert steps_of(workdir)[-1] == steps_of(reference)[-1] == STEPS
    found, _ = checkpoint_files.read(workdir / "checkpoints" / str(STEPS))
    expected, _ = checkpoint_files.read(reference / "checkpoints" / str(STEPS))
    assert found.keys() == expected.keys() and any(name.startswith("opt_state/") for name in found)
    different = [name for name in expected if found[name].tobytes() != expected[name].tobytes()]
    assert different == []
    assert record(workdir) == record(reference)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def reference(runs) -> pathlib.Path:
    workdir = runs.folder / "reference"
    output = runs.finish(workdir)
    assert "Finished" in output and "segjax.predict" in output
    rows = record(workdir)
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows if "val/miou" in row] == list(range(2 * EVERY, STEPS + 1, 2 * EVERY))
    return workdir


def test_a_stopped_run_says_how_to_continue_and_ends_bit_for_bit_the_same(runs, reference, tmp_path):
    workdir = tmp_path / "stopped"
    for number, at_step in ((signal.SIGTERM, 7), (signal.SIGINT, 31)):
        output = runs.signalled(workdir, number, at_step=at_step)
        saved = steps_of(workdir)[-1]
        assert at_step <= saved < STEPS
        assert "To continue" in output and f"--workdir={workdir}" in output and f"step {saved} of {STEPS}" in output
    assert f"continuing from the checkpoint of step {saved}" in runs.finish(workdir)
    assert_as_if_never_interrupted(workdir, reference)


def test_kill_9_and_then_a_damaged_checkpoint(runs, reference, tmp_path):
    workdir = tmp_path / "killed"
    runs.signalled(workdir, signal.SIGKILL, at_step=random.Random(0).randrange(3 * EVERY + 1, 5 * EVERY))
    *_, before, newest = steps_of(workdir)
    data = max((workdir / "checkpoints" / str(newest) / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0xFF
    data.write_bytes(bytes(content))
    output = runs.finish(workdir)
    assert f"checkpoint {newest}" in output and "damaged" in output and "Traceback" not in output
    assert f"continuing from the checkpoint of step {before}" in output
    assert (workdir / "checkpoints" / "damaged" / str(newest)).is_dir()
    assert_as_if_never_interrupted(workdir, reference)


@pytest.mark.slow
def test_kill_9_ten_times_at_random_moments(runs, reference, tmp_path):
    """In turn at any moment since the start of Python, and while it makes steps, evaluates and saves."""
    begin = time.monotonic()
    runs.finish(tmp_path / "timed")
    length, chance = time.monotonic() - begin, random.Random(1)
    workdir, kills = tmp_path / "killed", []
    for number in range(12):
        process, deadline = runs.start(workdir), time.monotonic() + TIMEOUT_S
        if number % 2:
            after = recorded(workdir)
            while recorded(workdir) in (0, after) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.1) * length)
        else:
            time.sleep(chance.uniform(0, 1) * length)
        process.kill()
        output = process.communicate()[0]
        assert process.returncode in (0, -9), output
        kills.append((process.returncode, recorded(workdir), steps_of(workdir)))
        if process.returncode == 0:
            assert_as_if_never_interrupted(workdir, reference)
            workdir = tmp_path / f"killed{number}"
    print(f"\nstatus, last step recorded, checkpoints after each kill: {kills}")
    runs.finish(workdir)
    assert_as_if_never_interrupted(workdir, reference)
    assert sum(status == -9 for status, _, _ in kills) >= 10 and any(steps for _, _, steps in kills)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_fills_up_and_is_cleared(runs, reference, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    one = sum(path.stat().st_size for path in (reference / "checkpoints" / str(STEPS)).rglob("*"))
    size = f"size={int(2.5 * one) + 500_000}"  # room for two checkpoints, and the third is written before one goes
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", disk], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        process = runs.start(disk / "run")
        output = process.communicate(timeout=TIMEOUT_S)[0]
        assert process.returncode == 2, output
        assert "error: disk full" in output and str(disk) in output and "Traceback" not in output
        assert steps_of(disk / "run")
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        assert "continuing from the checkpoint of step" in runs.finish(disk / "run")
        assert_as_if_never_interrupted(disk / "run", reference)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_finished_run_says_so_and_is_left_alone(runs, reference, capsys):
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*")}
    assert train.main(runs.arguments(reference)) == 0
    printed = capsys.readouterr().out
    assert "is finished" in printed and "reference-2" in printed
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("*")} == before


def test_a_workdir_of_another_config_is_refused_with_the_difference(runs, reference, capsys):
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*")}
    assert train.main(runs.arguments(reference, "--config.optimizer.learning_rate=0.125")) == 2
    printed = capsys.readouterr().err
    assert "optimizer.learning_rate" in printed and "0.001" in printed and "0.125" in printed
    assert f"--workdir={reference}-2" in printed and "Traceback" not in printed
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("*")} == before
