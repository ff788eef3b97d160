"""The folder of a run belongs to one config, and says so."""

import json
import os
import shlex

import pytest

from segjax import config as configs
from segjax.data.metadata import Classes
from segjax.training import tasks, workdirs
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


def test_a_command_that_failed_before_the_first_checkpoint_can_be_mended(tmp_path, config):
    workdirs.prepare(tmp_path, configs.override(config, {"data.root": "/nowhere"}), COMMAND)
    workdirs.prepare(tmp_path, config, COMMAND)
    assert configs.differences(configs.load_json(tmp_path / "config.json"), config) == []


def test_another_config_is_refused_with_the_difference_and_a_free_folder(tmp_path, config):
    workdir = tmp_path / "run"
    workdirs.prepare(workdir, config, COMMAND)
    (workdir / "checkpoints" / "10").mkdir(parents=True)
    (tmp_path / "run-2").mkdir()
    before = (workdir / "config.json").read_bytes()
    other = configs.override(config, {"optimizer.learning_rate": "0.5"})
    with pytest.raises(InputError) as caught:
        workdirs.prepare(workdir, other, [*COMMAND, "--config.data.size=(9, 9)", "--workdir", str(workdir)])
    assert "optimizer.learning_rate" in str(caught.value) and "-> 0.5" in str(caught.value)
    assert f"--workdir={tmp_path / 'run-3'}" in str(caught.value)
    command = str(caught.value).splitlines()[-1].strip()
    assert shlex.split(command) == [*COMMAND, "--config.data.size=(9, 9)", f"--workdir={tmp_path / 'run-3'}"]
    assert (workdir / "config.json").read_bytes() == before


def test_a_run_of_before_the_protocols_goes_on(tmp_path, config):
    """Its config lacks their keys, which then mean the defaults; another protocol is another config."""
    workdirs.prepare(tmp_path, config, COMMAND)
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    workdirs.prepare(tmp_path, tasks.completed(config), COMMAND)
    other = configs.override(tasks.completed(config), {"eval.flip": "true"})
    with pytest.raises(InputError, match="eval.flip: False -> True"):
        workdirs.prepare(tmp_path, other, COMMAND)


def test_a_run_of_before_pretrained_weights_goes_on(tmp_path, config):
    older = config.copy_and_resolve_references().unlock()
    del older.model.pretrained
    workdirs.prepare(tmp_path, older.lock(), COMMAND)
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    workdirs.prepare(tmp_path, config, COMMAND)
    other = configs.override(config, {"model.pretrained": "resnet50.safetensors"})
    with pytest.raises(InputError, match="model.pretrained"):
        workdirs.prepare(tmp_path, other, COMMAND)


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


def test_classes_of_a_started_run_cannot_change(tmp_path):
    workdirs.keep_classes(tmp_path, Classes(names=("a", "b")))
    workdirs.keep_classes(tmp_path, Classes(names=("a", "b", "c")))  # nothing was trained yet
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    before = (tmp_path / "classes.json").read_bytes()
    with pytest.raises(InputError, match="was trained on 3 classes .* has 2"):
        workdirs.keep_classes(tmp_path, Classes(names=("a", "b")))
    with pytest.raises(InputError, match="class 0 is 'a'"):
        workdirs.keep_classes(tmp_path, Classes(names=("b", "a", "c")))
    assert (tmp_path / "classes.json").read_bytes() == before


def test_a_second_training_in_the_folder_is_refused(tmp_path):
    in_use = pytest.raises(InputError, match=f"in use: process {os.getpid()} trains there")
    with workdirs.held(tmp_path), in_use, workdirs.held(tmp_path):
        raise AssertionError("two trainings in one folder")
    with workdirs.held(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_the_environment_of_each_start_is_kept(tmp_path, config):
    workdirs.prepare(tmp_path, config, COMMAND)
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    workdirs.prepare(tmp_path, config, [*COMMAND, "--again"])
    noted = json.loads((tmp_path / "environment.json").read_text())
    assert "--again" not in noted["command"] and "--again" in noted["continued"][0]["command"]
