"""COCO results: the numbers of the detections, the file whole or not there."""

import json

import numpy as np
import pytest

from segjax import rle
from segjax.inference import coco_results
from segjax.inference.instances import Detections
from segjax.types import InputError


def detections(scores=(0.9, 0.1), classes=(1, 0)):
    masks = [np.eye(6, 7, dtype=bool), np.zeros((6, 7), bool)]
    boxes = np.float32([[0.1, 0.2, 6.7, 5.3], [1, 2, 3, 4]])
    encoded = [rle.encode(mask) for mask in masks]
    encoded[1] = {"size": np.array([6, 7]), "counts": encoded[1]["counts"].encode()}  # as pycocotools has it
    return Detections((6, 7), boxes, np.float32(scores), np.int32(classes), encoded)


def test_entries():
    found = coco_results.results(detections(), image_id=np.int64(42), category_ids=np.array([3, 17]))
    assert [entry["category_id"] for entry in found] == [17, 3] and {entry["image_id"] for entry in found} == {42}
    assert list(found[0]) == ["image_id", "category_id", "bbox", "score", "segmentation"]
    box = np.float32([0.1, 0.2, 6.7, 5.3])
    assert found[0]["bbox"] == [*box[:2].tolist(), float(box[2] - box[0]), float(box[3] - box[1])]
    assert found[1]["bbox"] == [1, 2, 2, 2] and found[0]["score"] == float(np.float32(0.9))
    assert np.array_equal(rle.decode(found[0]["segmentation"]), np.eye(6, 7, dtype=bool))
    assert isinstance(found[1]["segmentation"]["counts"], str) and found[1]["segmentation"]["size"] == [6, 7]


def test_an_image_id_that_is_text_stays_it():
    assert coco_results.results(detections(), image_id="007", category_ids=[3, 17])[0]["image_id"] == "007"


def test_a_file_gives_the_numbers_back(tmp_path):
    path = tmp_path / "new" / "results.json"
    entries = [entry for i in range(3) for entry in coco_results.results(detections(), image_id=i, category_ids=[5, 6])]
    coco_results.write(path, entries)
    assert json.loads(path.read_text()) == entries
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]
    coco_results.write(path, [])
    assert json.loads(path.read_text()) == []


def test_no_detections():
    nothing = Detections((4, 4), np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), ())
    assert coco_results.results(nothing, image_id=1, category_ids=[1]) == []


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="image 7: a box or score is not finite"):
        coco_results.results(detections(scores=(0.5, float("nan"))), image_id=7, category_ids=[1, 2])
    with pytest.raises(ValueError, match=r"\[0, 1\]: expected 0 to 0"):
        coco_results.results(detections(), image_id=7, category_ids=[1])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        coco_results.write(tmp_path / "file" / "results.json", [])


def test_an_interrupted_file_leaves_the_one_before(tmp_path):
    path = tmp_path / "results.json"
    coco_results.write(path, [{"image_id": 1}])

    def entries():
        yield {"image_id": 2}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        coco_results.write(path, entries())
    assert json.loads(path.read_text()) == [{"image_id": 1}]
