"""Whatever is damaged about a checkpoint, it is not loaded, not deleted, and not counted as one of those kept."""

import json
import os
import pathlib
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest
from made_checkpoints import abstract, assert_same_bits, fill, flip, largest_data_file, make_state

from segjax.training import checkpoint_files
from segjax.training.checkpoint import Checkpoints, NoCheckpoint


def rewrite_metrics(folder: pathlib.Path) -> None:
    path = folder / "info" / "metadata"
    path.write_text(path.read_text().replace('"miou": 0.5', '"miou": 0.9'))


def drop_leaf_from_json(folder: pathlib.Path) -> None:
    path = folder / "info" / "metadata"
    info = json.loads(path.read_text())
    del info["leaves"]["params/scale"]
    info["crc32"] = checkpoint_files._seal(info)
    path.write_text(json.dumps(info))


def empty_folder(folder: pathlib.Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def empty_file(path: pathlib.Path) -> None:
    path.write_bytes(b"")


DAMAGES = {
    "flipped bytes": lambda folder: flip(largest_data_file(folder)),
    "truncated data": lambda folder: os.truncate(largest_data_file(folder), 100),
    "emptied data": lambda folder: empty_file(largest_data_file(folder)),
    "missing data": lambda folder: largest_data_file(folder).unlink(),
    "empty folder": empty_folder,
    "no state": lambda folder: shutil.rmtree(folder / "state"),
    "no manifest": lambda folder: (folder / "state" / "manifest.ocdbt").unlink(),
    "flipped manifest": lambda folder: flip(folder / "state" / "manifest.ocdbt"),
    "no tree": lambda folder: (folder / "state" / "_METADATA").unlink(),
    "emptied tree": lambda folder: empty_file(folder / "state" / "_METADATA"),
    "no json": lambda folder: shutil.rmtree(folder / "info"),
    "emptied json": lambda folder: empty_file(folder / "info" / "metadata"),
    "truncated json": lambda folder: os.truncate(folder / "info" / "metadata", 200),
    "altered score": rewrite_metrics,
    "one leaf too many": drop_leaf_from_json,
    "another step's folder": lambda folder: (shutil.rmtree(folder), shutil.copytree(folder.parent / "1", folder)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken(tmp_path, damage):
    fill(tmp_path, {1: 0.1, 2: 0.5})
    DAMAGES[damage](tmp_path / "2")

    lines: list[str] = []
    reader = Checkpoints(tmp_path, read_only=True, warn=lines.append)
    _, step, _ = reader.restore(abstract(make_state()), which="best")
    assert step == 1 and reader.skipped[0][0] == 2
    assert (tmp_path / "2").exists() and not (tmp_path / "damaged").exists()

    lines.clear()
    with Checkpoints(tmp_path, warn=lines.append) as checkpoints:
        restored, step, _ = checkpoints.restore(abstract(make_state()))
        assert step == 1
        assert_same_bits(restored, make_state(1))
        assert [found for found, _ in checkpoints.skipped] == [2]
        assert len(lines) == 1 and str(tmp_path / "damaged" / "2") in lines[0] and "checkpoint 2" in lines[0]
        assert (tmp_path / "damaged" / "2").is_dir() and not (tmp_path / "2").exists()
        assert checkpoints.save(2, make_state(2))
        restored, step, _ = checkpoints.restore(abstract(make_state()))
        assert step == 2
        assert_same_bits(restored, make_state(2))


def test_flipped_bytes_that_orbax_does_not_notice(tmp_path):
    kernel = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"kernel": kernel})
    flip(largest_data_file(tmp_path / "1"))
    restored = ocp.PyTreeCheckpointHandler().restore(tmp_path / "1" / "state", args=ocp.args.PyTreeRestore())
    assert 0 < np.sum(restored["kernel"] != kernel) < 1_000_000
    with pytest.raises(NoCheckpoint, match="1: leaf kernel: crc32 .*, saved as"):
        Checkpoints(tmp_path, read_only=True).restore({"kernel": kernel})


def test_an_undamaged_checkpoint_passes_every_check_above(tmp_path):
    fill(tmp_path, {1: 0.1, 2: 0.5})
    with Checkpoints(tmp_path, warn=pytest.fail) as checkpoints:
        assert checkpoints.restore(abstract(make_state()))[1] == 2


def test_a_damaged_best_does_not_push_a_good_one_out(tmp_path):
    fill(tmp_path, {1: 0.9, 2: 0.8, 3: 0.1})
    flip(largest_data_file(tmp_path / "1"))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(make_state()))[1] == 3
        checkpoints.save(4, make_state(4), metrics={"miou": 0.2})
        checkpoints.save(5, make_state(5), metrics={"miou": 0.2})
        assert checkpoints.steps() == [2, 4, 5] and checkpoints.best_step() == 2
    assert (tmp_path / "damaged" / "1").is_dir()


def test_nothing_whole_is_an_error_that_lists_what_was_found(tmp_path):
    with pytest.raises(NoCheckpoint, match="nothing has been saved"):
        Checkpoints(tmp_path / "absent", read_only=True).restore({})
    assert not (tmp_path / "absent").exists()
    fill(tmp_path, {1: None})
    flip(largest_data_file(tmp_path / "1"))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(NoCheckpoint, match="not whole are\n  1: "):
        checkpoints.restore(abstract(make_state()))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == []


def test_a_step_that_is_damaged_twice_keeps_both_remains(tmp_path):
    for _ in range(2):
        fill(tmp_path, {1: None})
        empty_folder(tmp_path / "1")
    Checkpoints(tmp_path)
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["1", "1-2"]


def test_an_unfinished_save_is_no_checkpoint_and_is_cleared_with_a_word(tmp_path):
    fill(tmp_path, {1: None})
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", unfinished)
    assert Checkpoints(tmp_path, read_only=True).steps() == [1] and unfinished.exists()
    lines: list[str] = []
    with Checkpoints(tmp_path, warn=lines.append) as checkpoints:
        assert checkpoints.steps() == [1]
        assert "cut short" in lines[0] and not unfinished.exists()
