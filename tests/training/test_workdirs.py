"""The folder of a run belongs to one config, and says so."""

import json

import pytest

from segjax import config as configs
from segjax.training import workdirs
from segjax.types import InputError

COMMAND = ["python", "-m", "segjax.train", "--config=experiments/deeplab.py"]


@pytest.fixture
def config():
    return configs.load_experiment("experiments/deeplab.py")


def test_a_new_folder_gets_config_and_environment(tmp_path, config):
    workdir = tmp_path / "run"
    assert not workdirs.finished(workdir, config, COMMAND)
    workdirs.prepare(workdir, config, COMMAND)
    assert configs.differences(configs.load_json(workdir / "config.json"), config) == []
    assert json.loads((workdir / "environment.json").read_text())["packages"]["jax"]
    workdirs.prepare(workdir, config, COMMAND)  # the same again is a resume


def test_another_config_is_refused_with_the_difference_and_a_free_folder(tmp_path, config):
    workdir = tmp_path / "run"
    workdirs.prepare(workdir, config, COMMAND)
    (tmp_path / "run-2").mkdir()
    before = (workdir / "config.json").read_bytes()
    other = configs.override(config, {"optimizer.learning_rate": "0.5"})
    with pytest.raises(InputError) as caught:
        workdirs.prepare(workdir, other, [*COMMAND, f"--workdir={workdir}"])
    assert "optimizer.learning_rate" in str(caught.value) and "-> 0.5" in str(caught.value)
    assert f"--workdir={tmp_path / 'run-3'}" in str(caught.value)
    assert str(caught.value).count("--workdir") == 1
    assert (workdir / "config.json").read_bytes() == before


def test_a_finished_run_says_so(tmp_path, config, capsys):
    workdirs.prepare(tmp_path, config, COMMAND)
    (tmp_path / "summary.json").write_text(json.dumps({"step": 7, "miou": 0.5}))
    assert workdirs.finished(tmp_path, config, COMMAND)
    said = capsys.readouterr().out
    assert "is finished: step 7, validation mIoU 0.5000" in said and "segjax.predict" in said


def test_a_damaged_summary_names_the_file(tmp_path, config):
    workdirs.prepare(tmp_path, config, COMMAND)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(InputError, match="summary.json is not readable"):
        workdirs.finished(tmp_path, config, COMMAND)


def test_an_unwritable_folder_is_named(tmp_path, config):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to the workdir"):
        workdirs.prepare(tmp_path / "file" / "run", config, COMMAND)


def test_root_becomes_absolute(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changed = workdirs.absolute_root(configs.override(config, {"data.root": "images"}))
    assert changed.data.root == str(tmp_path / "images")
    assert workdirs.absolute_root(config).data.root == config.data.root
