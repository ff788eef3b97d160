"""Inputs and outputs of a prediction: what is found, how results are named, what is never overwritten."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from segjax.data.metadata import Classes
from segjax.inference import files
from segjax.types import InputError


def touch(folder: pathlib.Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def names(inputs, output):
    return {str(job.source): job.name for job in files.find([str(path) for path in inputs], output)}


def test_equal_names_stay_apart(tmp_path):
    touch(tmp_path, "a/x.jpg", "b/x.jpg", "b/x.png", "b/c/x.PNG", "b/notes.txt", "b/y.x.jpg")
    found = names([tmp_path], tmp_path / "out")
    expected = {
        "a/x.jpg": "a/x.png",
        "b/x.jpg": "b/x.jpg.png",
        "b/x.png": "b/x.png.png",
        "b/c/x.PNG": "b/c/x.png",
        "b/y.x.jpg": "b/y.x.png",
    }
    assert found == {str(tmp_path / path): name for path, name in expected.items()}
    assert len(set(found.values())) == 5


def test_a_name_that_is_taken_by_a_rule_is_not_used_twice(tmp_path):
    touch(tmp_path, "x.jpg", "x.png", "x.jpg.png", "X.tif")
    found = names([tmp_path], tmp_path / "out")
    assert len({name.casefold() for name in found.values()}) == 4


def test_file_glob_and_folder(tmp_path):
    touch(tmp_path, "a/x.jpg", "a/y.jpg", "b/z.jpg", "odd.suffix", "out/labels/x.png")
    assert list(names([tmp_path / "a/x.jpg"], tmp_path / "out").values()) == ["x.png"]
    assert list(names([tmp_path / "*/x.jpg"], tmp_path / "out").values()) == ["x.png"]
    assert list(names([tmp_path / "a", tmp_path / "a/x.jpg", tmp_path / "b"], tmp_path / "out").values()) == [
        "a/x.png",
        "a/y.png",
        "b/z.png",
    ]
    assert list(names([tmp_path / "**"], tmp_path / "out").values()) == ["a/x.png", "a/y.png", "b/z.png"]
    assert list(names([tmp_path / "odd.suffix"], tmp_path / "out").values()) == ["odd.png"]
    assert list(names([tmp_path], tmp_path / "out").values()) == [
        "a/x.png",
        "a/y.png",
        "b/z.png",
    ]  # not its own results


def test_errors_name_the_input(tmp_path):
    touch(tmp_path, "empty/notes.txt", "results/labels/x.png", "results/sheet.png")
    with pytest.raises(InputError, match="empty holds no picture"):
        files.find([str(tmp_path / "empty")], tmp_path / "out")
    with pytest.raises(InputError, match="nowhere is no file and no folder"):
        files.find([str(tmp_path / "nowhere")], tmp_path / "out")
    with pytest.raises(InputError, match="would replace the input"):
        files.find([str(tmp_path / "results/labels/x.png")], tmp_path / "results")
    with pytest.raises(InputError, match="would replace the input"):
        files.find([str(tmp_path / "results/sheet.png")], tmp_path / "results")


def test_a_written_label_holds_ids_and_the_palette(tmp_path):
    classes = Classes(("a", "b"), np.array([[1, 2, 3], [200, 100, 50]]))
    image = np.zeros((5, 7, 3), np.uint8)
    ids = np.arange(35).reshape(5, 7) % 2
    job = files.Job(pathlib.Path("in.jpg"), "deep/er/in.png")
    drawn = files.write(tmp_path, job, image, ids, classes)
    assert drawn.shape == image.shape
    with Image.open(tmp_path / "labels/deep/er/in.png") as label:
        assert label.mode == "P" and np.array_equal(np.asarray(label), ids)
        assert np.array_equal(np.asarray(label.convert("RGB")), classes.palette[ids])
    with Image.open(tmp_path / "overlays/deep/er/in.png") as overlay:
        assert overlay.width >= 320
    (tmp_path / "blocked").write_text("a file where a folder should be")
    with pytest.raises(InputError, match="cannot write"):
        files.write(tmp_path / "blocked", job, image, ids, classes)


def test_index_page_escapes_names():
    classes = Classes(("<b>", "b"))
    job = files.Job(pathlib.Path("a&b #1.jpg"), "a&b #1.png")
    page = files.index_page("title <x>", [job], ["bad <y>.png: truncated"], classes, {"class ids": "labels"})
    assert "&lt;b&gt;" in page and "title &lt;x&gt;" in page and "bad &lt;y&gt;.png" in page
    assert 'src="overlays/a%26b%20%231.png"' in page and "a&amp;b #1" in page
    assert '<a href="labels/a%26b%20%231.png">class ids</a>' in page
