"""The dataset doctor on sets whose faults are known."""

import json

import numpy as np
import pytest
from PIL import Image

from segjax import data
from segjax.data import check, survey


@pytest.fixture
def root(tmp_path):
    """Three training and two validation examples of 4x6, all sound; class 2 only in one of them."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for place in (split, f"{split}annot"):
            (tmp_path / "set" / place).mkdir(parents=True)
        for i in range(count):
            _save(tmp_path / "set" / split / f"{i}.png", rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
            _save(tmp_path / "set" / f"{split}annot" / f"{i}.png", np.repeat([[0, 0, 0, 1, 1, 255]], 4, 0))
    _save(tmp_path / "set" / "trainannot" / "0.png", np.repeat([[0, 0, 2, 2, 2, 2]], 4, 0))
    (tmp_path / "set" / "classes.json").write_text('{"classes": ["a", "b", "c"]}')
    return tmp_path / "set"


def _save(path, array):
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


def _run(capsys, *argv):
    status = check.main(list(argv))
    out = capsys.readouterr()
    return status, out.out, out.err


def test_a_sound_set_passes_with_its_counts(root, capsys, tmp_path):
    status, out, err = _run(capsys, f"--root={root}", f"--output={tmp_path / 'report'}")
    assert status == 0 and "no errors" in out
    assert "reading train: 3/3" in err and "reading val: 2/2" in err
    report = json.loads((tmp_path / "report" / "check.json").read_text())["splits"]
    assert list(report) == ["train", "val"]
    assert [c["pixels"] for c in report["train"]["classes"]] == [8 + 12 + 12, 8 + 8, 16]
    assert [c["images"] for c in report["train"]["classes"]] == [3, 2, 1]
    assert report["train"]["ignored_pixels"] == 8
    assert Image.open(tmp_path / "report" / "overlays_train.png").size[0] > 0
    assert "6x4 (3)" in out


def test_median_frequency_weights_are_those_of_the_definition(root, capsys):
    one = survey.survey(data.build("folder", split="train", root=str(root)))
    # pixels / all pixels of the images that have the class: 32/72, 16/48, 16/24; their median is 32/72
    expected = (32 / 72) / np.array([32 / 72, 16 / 48, 16 / 24])
    np.testing.assert_allclose(survey.median_frequency_weights(one), expected)
    line = _run(capsys, f"--root={root}")[1]
    assert '--config.loss.class_weights="(1.0000,1.3333,0.6667,)"' in line


def test_a_class_that_does_not_occur_weighs_nothing(root):
    one = survey.survey(data.build("folder", split="val", root=str(root)))
    weights = survey.median_frequency_weights(one)
    assert weights[2] == 0 and np.isfinite(weights).all()
    assert "absent" in "\n".join(check.describe(one))


def test_every_fault_is_listed_and_none_stops_the_rest(root, capsys, tmp_path):
    (root / "train" / "0.png").write_bytes(b"")
    _save(root / "trainannot" / "1.png", np.zeros((4, 7)))
    label = np.zeros((4, 6))
    label[2, 5] = 17
    _save(root / "trainannot" / "2.png", label)
    _save(root / "train" / "lonely.png", np.zeros((4, 6, 3)))
    (root / "valannot" / "1.png").write_bytes((root / "valannot" / "1.png").read_bytes()[:60])
    status, out, _ = _run(capsys, f"--root={root}", f"--output={tmp_path / 'report'}")
    assert status == 1
    errors = [line for line in out.splitlines() if line.startswith("ERROR")]
    assert len(errors) == 5 and "5 errors" in out
    for words in (
        ("no partner", "lonely.png"),
        ("unreadable", "train/0.png"),
        ("size mismatch", "train/1.png", "6x4", "7x4"),
        ("unknown id", "trainannot/2.png", "17", "row 2, column 5"),
        ("unreadable", "valannot/1.png"),
    ):
        assert any(all(word in line for word in words) for line in errors), words
    assert "UNKNOWN" in out  # row of the histogram
    report = json.loads((tmp_path / "report" / "check.json").read_text())["splits"]["train"]
    assert report["unknown_pixels"] == {"17": 1}
    assert len(report["problems"]) == 4


def test_an_empty_validation_folder_is_an_error(root, capsys):
    for file in (root / "val").iterdir():
        file.unlink()
    status, out, _ = _run(capsys, f"--root={root}")
    assert status == 1 and "'val' is empty" in out


def test_duplicates_within_and_across_splits(root, capsys):
    (root / "train" / "1.png").write_bytes((root / "train" / "0.png").read_bytes())
    Image.open(root / "train" / "2.png").save(root / "val" / "0.tif")  # the same pixels in another file
    (root / "val" / "0.png").unlink()
    status, out, _ = _run(capsys, f"--root={root}")
    assert status == 0
    lines = out.splitlines()
    within = lines[next(i for i, line in enumerate(lines) if "duplicate images within" in line) + 1]
    across = lines[next(i for i, line in enumerate(lines) if "duplicate images across" in line) + 1]
    assert "train/0.png" in within and "train/1.png" in within
    assert "train/2.png" in across and "val/0.tif" in across
    assert "exact" in out


def test_an_empty_split_is_an_error_and_the_others_are_examined(root, capsys):
    status, out, _ = _run(capsys, f"--root={root}", "--split=train", "--split=test")
    assert status == 1
    assert "== train: 3 examples" in out and "split 'test' is empty" in out


def test_labels_by_id_and_by_colour(root, capsys):
    (root / "classes.json").write_text('{"classes": ["a", "b", "c"], "ids": [10, 20, 30], "ignore_label": 0}')
    for split, count in (("train", 3), ("val", 2)):
        for i in range(count):
            _save(root / f"{split}annot" / f"{i}.png", np.repeat([[10, 20, 30, 30, 0, 0]], 4, 0))
    _save(root / "valannot" / "1.png", np.repeat([[10, 20, 30, 31, 0, 0]], 4, 0))
    status, out, _ = _run(capsys, f"--root={root}")
    assert status == 1
    assert "   31  UNKNOWN                           4" in out
    colours = '{"classes": ["a", "b"], "colors": [[1, 1, 1], [2, 2, 2]]}'
    (root / "classes.json").write_text(colours)
    for split, count in (("train", 3), ("val", 2)):
        for i in range(count):
            _save(root / f"{split}annot" / f"{i}.png", np.full((4, 6, 3), 1 + i % 2))
    assert _run(capsys, f"--root={root}")[0] == 0


def test_without_classes_the_ids_found_are_the_classes(root, capsys):
    (root / "classes.json").unlink()
    status, out, _ = _run(capsys, f"--root={root}")
    assert status == 0 and "class 2" in out


def test_a_config_names_the_set(root, capsys, tmp_path):
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    data = {'name': 'folder', 'root': '', 'train_split': 'train', 'split': 'val', 'size': (4, 6)}\n"
        "    return ConfigDict({'data': data})\n"
    )
    status, out, _ = _run(capsys, f"--config={experiment}", f"--config.data.root={root}")
    assert status == 0 and "== train: 3" in out and "== val: 2" in out
    status, _, err = _run(capsys, f"--config={experiment}", "--config.data.rot=x")
    assert status == 2 and "data.root" in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [([], "either --root=DIR or --config=FILE"), (["--root=/absent/x"], "no such folder"), (["--rot=x"], "--root")],
)
def test_a_command_that_cannot_start_says_why(capsys, argv, words):
    status, out, err = _run(capsys, *argv)
    assert status == 2 and words in err and not out


def test_a_set_of_objects_is_refused(tmp_path, capsys):
    (tmp_path / "train").mkdir()
    (tmp_path / "annotations").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "train" / "a.png")
    images = [{"id": 1, "file_name": "a.png", "height": 4, "width": 4}]
    content = {"images": images, "categories": [{"id": 1, "name": "cell"}], "annotations": []}
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    arguments = [f"--config.data.root={tmp_path}", "--config.data.folder=", "--split=train"]
    assert check.main(["--config=experiments/mask_rcnn.py:nuclei", *arguments]) == 2
    assert "is a set of objects" in capsys.readouterr().err
