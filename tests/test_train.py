"""The command line of training; whole runs are in test_resume.py."""

import pytest

from segjax import train


def test_help_lists_the_flags_and_the_fields_of_the_config(capsys):
    assert train.main(["--config=experiments/deeplab.py:camvid", "--config.train.steps=7", "--help"]) == 0
    said = capsys.readouterr().out
    assert (
        "--workdir=DIR" in said and "--config.train.steps=7" in said and "--config.model.backbone=mobilenet_v2" in said
    )
    assert "--config.eval.protocol=whole" in said  # a key that the experiment leaves out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--config is missing"),
        (["--config=experiments/deeplap.py"], "experiments/deeplab.py"),
        (["--config=experiments/deeplab.py:camvit"], "it has shapes, camvid"),
        (["--config=experiments/deeplab.py", "--config.optimzer.learning_rate=1"], "optimizer.learning_rate"),
        (["--config=experiments/deeplab.py", "--config.train.steps=many"], "expected an int"),
        (["--config=experiments/deeplab.py", "--wordkir=x"], "--workdir"),
        (
            ["--config=experiments/deeplab.py", "--config.eval.protocol=slied"],
            "whole, crop, slide; did you mean slide?",
        ),
        (["--config=experiments/deeplab.py", "--config.eval.batch_norm=batch"], "is of segjax.evaluate alone"),
        (["--config=experiments/deeplab.py", "--config.loss.name=dice+focl"], "did you mean focal?"),
        (["--config=experiments/deeplab.py:folder", "--config.data.root=/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_are_told_in_one_line_with_the_cure(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("segjax.training.devices.keep_compiled_programs", lambda folder: None)
    workdir = [] if any("wordkir" in word for word in arguments) else [f"--workdir={tmp_path / 'run'}"]
    assert train.main([*arguments, *workdir]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and "Traceback" not in said
