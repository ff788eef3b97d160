"""Which numbers images have in COCO's JSON."""

import json
import pathlib

import pytest

from segjax.data.metadata import Classes
from segjax.inference import files, outcomes
from segjax.types import InputError


def jobs(*paths):
    return [files.Job(pathlib.Path(path), f"{number}.png") for number, path in enumerate(paths)]


def numbers(folder, found, names):
    """Image ids of jobs, in a JSON whose images are named so and have the ids 10, 11, ..."""
    images = [{"file_name": name, "id": 10 + i} for i, name in enumerate(names)]
    file = folder / "annotations.json"
    file.write_text(json.dumps({"images": images, "categories": [{"name": "cell", "id": 7}, {"name": "dog", "id": 3}]}))
    ids, categories = outcomes.numbers(found, Classes(("dog", "cell")), str(file))
    assert categories == (3, 7)
    return [ids[job] for job in found]


def test_without_annotations_they_are_counted():
    found = jobs("b.jpg", "a.jpg")
    assert outcomes.numbers(found, Classes(("dog", "cell")), "") == ({found[0]: 1, found[1]: 2}, (1, 2))
    assert outcomes.numbers(found, Classes(("dog", "cell"), ids=(4, 9)), "")[1] == (4, 9)


def test_by_the_end_of_the_path_then_by_name(tmp_path):
    names = ["a/x.jpg", "b/x.jpg", "y.jpg", "other/z.jpg"]
    assert numbers(tmp_path, jobs("/d/b/x.jpg", "/d/a/x.jpg", "/d/a/y.jpg", "/d/z.jpg"), names) == [11, 10, 12, 13]


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["/d/c/x.jpg"], "2 images 'x.jpg', none at the end of /d/c/x.jpg"),
        (["/d/w.jpg"], "no 'w.jpg'"),
        (["/d/a/y.jpg", "/d/b/y.jpg"], "/d/a/y.jpg and /d/b/y.jpg are both 12"),
    ],
)
def test_no_image_gets_the_number_of_another(tmp_path, paths, words):
    with pytest.raises(InputError, match=words):
        numbers(tmp_path, jobs(*paths), ["a/x.jpg", "b/x.jpg", "y.jpg"])
