"""What classes.json may say, and the sets by file name."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from segjax import data
from segjax.data import metadata
from segjax.data.metadata import Classes
from segjax.types import InputError


def test_written_classes_read_back_equal(tmp_path):
    classes = Classes(("road", "car"), [[1, 2, 3], [4, 5, 6]], 11, ids=(0, 255), ignore_colors=((9, 9, 9),))
    classes.write(tmp_path / "classes.json")
    assert metadata.read(tmp_path / "classes.json") == classes
    assert pickle.loads(pickle.dumps(classes)) == classes
    assert classes != Classes(("road", "car"), [[1, 2, 3], [4, 5, 7]], 11, ids=(0, 255), ignore_colors=((9, 9, 9),))


def test_defaults_are_255_and_the_colours_of_voc():
    classes = Classes(("a", "b", "c"))
    assert classes.ignore_label == 255
    # the first rows of VOCcolormap: black, maroon, green
    np.testing.assert_array_equal(classes.palette, [[0, 0, 0], [128, 0, 0], [0, 128, 0]])
    np.testing.assert_array_equal(metadata.default_palette(21)[[15, 20]], [[192, 128, 128], [0, 64, 128]])


def test_a_colour_listed_for_the_ignored_id_means_ignored():
    classes = Classes(("a", "b"), [[0, 0, 1], [0, 0, 2], [7, 7, 7]], ignore_label=2)
    assert classes.palette.shape == (2, 3)
    assert classes.ignore_colors == ((7, 7, 7),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "expected"),
        ('{"classes": []}', "at least one"),
        ('{"classes": ["a", 3]}', "class names"),
        ('{"classes": ["a", "b"], "colors": [[1, 2, 3]]}', "2 classes but 1 colours"),
        ('{"classes": ["a"], "colors": [[1, 2, 256]]}', "0 .. 255"),
        ('{"classes": ["a"], "ignore_label": "void"}', "ignore_label must be a whole number"),
        ('{"classes": ["a", "b"], "ids": [0, 0]}', "ids must be"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path, text, words):
    path = tmp_path / "classes.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as error:
        metadata.read(path)
    assert str(path) in str(error.value)


def test_sets_are_found_by_file_name_and_unknown_ones_name_the_nearest():
    assert "folder" in data.names()
    assert "pipeline" not in data.names()
    with pytest.raises(InputError, match="did you mean 'folder'.*known ones are.*folder"):
        data.build("foldr", split="train")
    with pytest.raises(InputError, match="no option 'image': did you mean 'images'"):
        data.build("folder", split="train", root=".", image="x")


def test_a_config_hands_on_what_the_set_takes(tmp_path):
    for place in ("train", "trainannot"):
        (tmp_path / "mine" / place).mkdir(parents=True)
        Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "mine" / place / "x.png")
    section = {
        "name": "folder",
        "root": str(tmp_path),
        "folder": "mine",
        "size": (1, 1),
        "workers": 2,
        "tfds_name": "x",
    }
    handed = Classes(("one", "two"))
    assert data.from_config(section, "train", classes=handed).classes == handed
    (tmp_path / "mine" / "classes.json").write_text(json.dumps({"classes": ["own"]}))
    assert data.from_config(section, "train", classes=handed).class_names == ("own",)
    with pytest.raises(InputError, match="unknown data set 'nowhere'"):
        data.from_config({"name": "nowhere"}, "train")
