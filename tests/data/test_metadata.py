"""What classes.json may say, and the sets by file name."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from segjax import data
from segjax.data import label_ids, metadata
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


@pytest.mark.parametrize(("count", "ignored"), [(255, 255), (256, 65535), (300, 65535)])
def test_the_default_ignore_label_is_no_class(tmp_path, count, ignored):
    content = {"classes": [f"class {i}" for i in range(count)]}
    classes = metadata.from_dict(content)
    assert classes.ignore_label == ignored == Classes(tuple(content["classes"])).ignore_label
    classes.write(tmp_path / "classes.json")
    assert metadata.read(tmp_path / "classes.json") == classes
    assert metadata.from_dict({**content, "ignore_label": 7}).ignore_label == 7


@pytest.mark.parametrize("ignored", [-1, 255, 65535])
@pytest.mark.parametrize("by", ["ids", "colours", "values"])
def test_labels_of_many_classes_keep_their_ids(ignored, by):
    count = 256 if ignored != 255 else 255
    names = tuple(f"class {i}" for i in range(count))
    colours = [[i, 1, 2] for i in range(count)] + [[0, 9, 9]]
    ids = tuple(range(1000, 1000 + count)) if by == "values" else None
    classes = Classes(names, colours[:count], ignored, ids, ignore_colors=(tuple(colours[-1]),))
    expected = np.array([[0, count - 1, ignored]], np.int32)
    stored = {"ids": expected, "colours": np.array([[colours[0], colours[count - 1], colours[-1]]], np.uint8)}
    stored["values"] = np.array([[1000, 1000 + count - 1, ignored]], np.int32)
    if by == "values" and ignored < 0:  # no pixel value of a file is negative
        stored["values"], expected = stored["values"][:, :2], expected[:, :2]
    np.testing.assert_array_equal(label_ids.to_ids(stored[by], classes, "x.png"), expected)


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
        ('{"classes": ["a", "b"], "ids": 3}', "ids must be one different pixel value .* got 3"),
        ('{"classes": ["a"], "ids": ["x"]}', "ids must be"),
        ('{"classes": ["a"], "ids": [[1]]}', "ids must be"),
        ('{"classes": ["a"], "ids": [0.5]}', "ids must be"),
        ('{"classes": ["a"], "ignore_colors": 3}', "colours must be a list"),
        ('{"classes": ["a"], "ignore_colors": [3]}', "colours must be a list"),
        ('{"classes": ["a"], "ignore_colors": {"a": 1}}', "colours must be a list"),
        ('{"classes": ["a"], "colors": 3}', "colours must be a list"),
        ('{"classes": ["a"], "colors": "red"}', "colours must be a list"),
        ('{"classes": ["a"], "ignore_label": [255]}', "ignore_label must be a whole number"),
        ('{"classes": ["a", "b", "a"]}', "class names must differ, but 'a' occurs more than once"),
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
