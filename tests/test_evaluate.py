"""python -m segjax.evaluate: the right checkpoint, the right numbers, errors that say what to do."""

import json
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import trained_run
from trained_run import read_json

from segjax import evaluate
from segjax.data.metadata import Classes
from segjax.training import setup


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    trained_run.write_images(folder / "images")
    trained_run.write_run(folder / "run", folder / "images")
    return folder


@pytest.fixture(autouse=True)
def small_model(monkeypatch):
    monkeypatch.setattr(setup, "build_model", trained_run.build_model)


def call(*arguments):
    return evaluate.main([*arguments, "--compilation_cache="])


def test_writes_the_scores_of_the_best_checkpoint(run, capsys):
    assert call(f"--workdir={run / 'run'}") == 0
    result = read_json(run / "run/evaluation.json")
    assert result["checkpoint"] == 20 and result["split"] == "val" and result["ema"] is False
    assert list(result["iou"]) == list(trained_run.CLASSES.names)
    assert result["miou"] == pytest.approx(np.mean(list(result["iou"].values())))
    assert result["miou"] > 0.9 and result["pixel_accuracy"] > 0.95
    assert result["examples"] == 5
    assert result["pixels"] == sum((rows - 2) * columns for rows, columns in trained_run.SIZES)
    assert sum(result["support"].values()) == result["pixels"]
    assert result["protocol"]["resolution"] == "native" and result["protocol"]["canvas"] == [32, 48]
    assert {"fwiou", "dice", "mean_accuracy", "mean_dice", "date", "versions", "config"} <= set(result)
    shown = capsys.readouterr()
    assert "evaluated 5/5 images" in shown.out and "compiling" in shown.out and shown.err == ""
    row = re.search(r"green thing +([\d.]+) +([\d.]+) +([\d.]+) +([\d,]+) +([\d.]+)%", shown.out)
    assert float(row[1]) == pytest.approx(result["iou"]["green thing"], abs=1e-4)
    assert int(row[4].replace(",", "")) == result["support"]["green thing"]


@pytest.mark.parametrize(
    ("arguments", "step", "right"),
    [(["--checkpoint=last"], 30, False), (["--checkpoint=10"], 10, False), (["--checkpoint=30", "--ema"], 30, True)],
)
def test_checkpoint_and_ema(run, arguments, step, right):
    output = run / "other.json"
    assert call(f"--workdir={run / 'run'}", f"--output={output}", *arguments) == 0
    result = read_json(output)
    assert result["checkpoint"] == step and (result["miou"] > 0.9) == right
    assert result["ema"] == ("--ema" in arguments)


def test_resolution_and_batch_size(run, capsys):
    results = []
    for arguments in (["eval.resolution=input"], ["eval.resolution=input", "eval.batch_size=5"]):
        flags = [f"--config.{argument}" for argument in arguments]
        assert call(f"--workdir={run / 'run'}", f"--output={run / 'input.json'}", *flags) == 0
        results.append(read_json(run / "input.json"))
        assert "warning: not the protocol of the run's own evaluations: resolution: native -> input" in (
            capsys.readouterr().err
        )
    assert results[0]["miou"] == results[1]["miou"]
    assert results[0]["config"] == {"eval.resolution": "input"}
    assert results[0]["pixels"] <= 5 * 32 * 48


@pytest.mark.parametrize(
    ("flags", "rules"),
    [
        (["protocol=slide", "window=16,20"], {"inference": "sliding window, mean of logits", "stride": [11, 13]}),
        (["protocol=crop", "window=16,20", "resolution=input"], {"inference": "central crop", "window": [16, 20]}),
        (["scales=0.5,1.0", "flip=true"], {"scales": [0.5, 1.0], "flip": True, "combined": "mean of softmax"}),
        (["batch_norm=batch"], {"batch_norm": "statistics of each batch of 2"}),
        (["batch_norm=reestimated"], {"batch_norm": "statistics of the training set, batches of 2"}),
        (["convention=segnet"], {"convention": "segnet", "absent": "as segnet"}),
    ],
)
def test_a_protocol_is_chosen_by_name_and_written_beside_its_number(run, capsys, flags, rules):
    if "batch_norm=reestimated" in flags and not (run / "images/train").exists():
        trained_run.write_images(run / "images", split="train", classes=None)
    output = run / "protocol.json"
    arguments = [f"--config.eval.{flag}" for flag in flags]
    assert call(f"--workdir={run / 'run'}", f"--output={output}", *arguments) == 0
    result, shown = read_json(output), capsys.readouterr()
    assert result["miou"] > 0.9 and rules.items() <= result["protocol"].items()
    assert "warning: not the protocol of the run's own evaluations: " in shown.err
    if "protocol=crop" in flags:
        assert result["pixels"] <= 5 * 16 * 20


def test_scores_of_the_em_challenge(tmp_path, capsys, monkeypatch):
    """Two classes; what was the third is ignored, and so membrane in both maps."""
    classes, variables = Classes(("membrane", "cell")), trained_run._variables
    monkeypatch.setattr(trained_run, "CLASSES", classes)
    monkeypatch.setattr(trained_run, "_variables", lambda kernel: {**variables(kernel), "params": {
        "classify": {"kernel": kernel[..., :2], "bias": jnp.zeros(2)}}})  # fmt: skip
    trained_run.write_images(tmp_path / "images", classes=classes)
    for label in (tmp_path / "images/valannot").iterdir():
        ids = np.asarray(trained_run.Image.open(label))
        trained_run.Image.fromarray(np.where(ids == 2, 255, ids).astype(np.uint8)).save(label)
    trained_run.write_run(tmp_path / "run", tmp_path / "images")
    assert call(f"--workdir={tmp_path / 'run'}", "--config.eval.scores=em") == 0
    result, shown = read_json(tmp_path / "run/evaluation.json"), capsys.readouterr()
    scores = result["em"]
    assert scores["cell"] == "cell" and scores["foreground_iou"] == result["iou"]["cell"] > 0.9
    assert scores["sections"] == 5 and len(scores["per_section"]["rand_score"]) == 5
    assert scores["rand_score"] > 0.9 and scores["pixel_error"] < 0.05 and "above the threshold" in scores["rule"]
    assert re.search(rf"rand_score +{scores['rand_score']:.4f} +{scores['best']['rand_score']['value']:.4f}", shown.out)
    assert "not the protocol" not in shown.err
    assert call(f"--workdir={tmp_path / 'run'}") == 0
    assert "em" not in read_json(tmp_path / "run/evaluation.json")


def test_an_absent_class_is_null_and_a_dash(run, tmp_path, capsys):
    trained_run.write_images(tmp_path / "images", split="test")
    for label in (tmp_path / "images/testannot").iterdir():
        image = trained_run.Image.open(label)
        ids = np.asarray(image)
        trained_run.Image.fromarray(np.where(ids == 1, 255, ids).astype(np.uint8)).save(label)
    flags = [f"--config.data.root={tmp_path / 'images'}", "--config.data.split=test"]
    flags += ["--config.eval.absent=ground_truth_only", f"--output={tmp_path / 'e.json'}"]
    assert call(f"--workdir={run / 'run'}", *flags) == 0
    result = json.loads((tmp_path / "e.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert result["iou"]["green thing"] is None and result["split"] == "test"
    assert re.search(r"green thing +- +- +- +0", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workdir={run}/runn"], ["is not the folder of a run", "run"]),
        ([], ["--workdir is missing"]),
        (["--workdir={run}/run", "--config.eval.resolutoin=input"], ["did you mean eval.resolution?"]),
        (["--workdir={run}/run", "--config.eval.resolution=half"], ["eval.resolution='half'", "native, input"]),
        (["--workdir={run}/run", "--config.eval.protocol=tile"], ["eval.protocol='tile'", "whole, crop, slide"]),
        (["--workdir={run}/run", "--config.eval.convention=voc"], ["eval.convention='voc'", "detectron2, segnet"]),
        (["--workdir={run}/run", "--config.eval.scores=em"], ["two classes, membrane and cell", "has 3"]),
        (["--workdir={run}/run", "--config.eval.scores=rand"], ["eval.scores='rand'", "none, em"]),
        (["--workdir={run}/run", "--config.eval.protocol=slide"], ["needs a window, such as eval.window=512,512"]),
        (["--workdir={run}/run", "--config.data.root=/nowhere"], ["data.root=/nowhere", "no such folder"]),
        (["--workdir={run}/run", "--config.data.split=test"], ["split 'test' is empty"]),
        (["--workdir={run}/run", "--checkpoint=11"], ["no checkpoint 11", "10, 20, 30"]),
        (["--workdir={run}/run", "--checkpont=11"], ["unknown argument --checkpont", "did you mean --checkpoint?"]),
        (["--workdir={run}/run", "--output={run}/no/such/folder.json"], ["cannot write"]),
    ],
)
def test_errors(run, capsys, arguments, words):
    assert call(*(argument.format(run=run) for argument in arguments)) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and "Traceback" not in shown
    assert all(word in shown for word in words), shown


@pytest.mark.parametrize(
    ("names", "words"),
    [(("red thing", "green thing"), ["3 classes", "has 2"]), (("red thing", "blue thing", "green thing"), ["class 1"])],
)
def test_other_classes_are_refused_before_any_work(run, tmp_path, capsys, monkeypatch, names, words):
    trained_run.write_images(tmp_path / "images", classes=Classes(names))
    monkeypatch.setattr(setup, "build_model", lambda *_: pytest.fail("work was begun"))
    assert call(f"--workdir={run / 'run'}", f"--config.data.root={tmp_path / 'images'}") == 2
    shown = capsys.readouterr().err
    assert all(word in shown for word in words), shown


def test_a_checkpoint_of_another_model_is_refused(run, capsys, monkeypatch):
    monkeypatch.setattr(setup, "build_model", lambda config, num_classes: trained_run.Brightest(num_classes + 1))
    assert call(f"--workdir={run / 'run'}") == 2
    assert "classify/" in capsys.readouterr().err


def test_no_moving_average(tmp_path, capsys):
    trained_run.write_images(tmp_path / "images")
    trained_run.write_run(tmp_path / "run", tmp_path / "images", ema=False)
    assert call(f"--workdir={tmp_path / 'run'}", "--ema") == 2
    assert "no moving average" in capsys.readouterr().err


def test_help_lists_arguments_and_the_runs_config(run):
    command = [sys.executable, "-m", "segjax.evaluate", "--help", f"--workdir={run / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--checkpoint" in done.stdout and "--config.eval.resolution=native" in done.stdout
    assert "--config.eval.protocol=NAME" in done.stdout and "--config.eval.protocol=whole" in done.stdout


def test_interrupted(run, tmp_path, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate.evaluation, "evaluate", stop)
    output = tmp_path / "interrupted.json"
    assert call(f"--workdir={run / 'run'}", f"--output={output}") == 130
    assert capsys.readouterr().err == "\ninterrupted: no result was written\n" and not output.exists()


def test_out_of_memory_advises_the_batch_of_evaluation(run, capsys, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(evaluate.evaluation, "evaluate", full)
    assert call(f"--workdir={run / 'run'}") == 2
    assert "--config.eval.batch_size=1 " in capsys.readouterr().err
