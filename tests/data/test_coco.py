"""COCO's JSON: every form of mask, what is ordinary in it, and every way it can be wrong."""

import json
import logging
import pickle

import numpy as np
import pytest
from PIL import Image

from segjax import rle
from segjax.data import coco
from segjax.metrics import average_precision
from segjax.types import InputError

MASK = np.zeros((20, 30), bool)
MASK[3:9, 5:12] = True
POLYGON = [[5, 3, 12, 3, 12, 9, 5, 9]]


def content():
    counts = rle.string_to_counts(rle.encode(MASK)["counts"]).tolist()
    common = {"image_id": 11, "category_id": 4, "bbox": [5, 3, 7, 6], "area": 42, "iscrowd": 0}
    forms = [POLYGON, rle.encode(MASK), {"size": [20, 30], "counts": counts}]
    annotations = [{**common, "id": i + 1, "segmentation": form} for i, form in enumerate(forms)]
    annotations[2] |= {"iscrowd": 1, "category_id": 2}
    return {
        "images": [{"id": 11, "file_name": "a.png", "height": 20, "width": 30},
                   {"id": 5, "file_name": "sub/b.png", "height": 8, "width": 9}],
        "categories": [{"id": 4, "name": "cell"}, {"id": 2, "name": "clump"}],
        "annotations": annotations,
    }  # fmt: skip


def write(root, what):
    (root / "train" / "sub").mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    for name, size in (("a.png", (20, 30)), ("sub/b.png", (8, 9))):
        Image.fromarray(np.full((*size, 3), 7, np.uint8)).save(root / "train" / name)
    (root / "annotations" / "instances_train.json").write_text(what if isinstance(what, str) else json.dumps(what))
    return coco.make(split="train", root=str(root))


def test_every_form_of_mask(tmp_path):
    dataset = write(tmp_path, content())
    assert dataset.instances and len(dataset) == 2 and dataset.num_classes == 2
    assert dataset.class_names == ("clump", "cell") and dataset.category_ids.tolist() == [2, 4]
    assert dataset.image_size(0) == (20, 30) and dataset.describe(1).endswith("train/sub/b.png")
    example = pickle.loads(pickle.dumps(dataset))[0]
    assert example["image"].shape == (20, 30, 3) and example["image_id"] == 11
    for mask in example["masks"]:
        np.testing.assert_array_equal(rle.decode(mask), MASK)
    np.testing.assert_array_equal(example["boxes"], np.float32([[5, 3, 12, 9]] * 3))
    assert example["classes"].tolist() == [1, 1, 0] and example["crowd"].tolist() == [False, False, True]
    assert example["area"].tolist() == [42] * 3
    kinds = {key: example[key].dtype.name for key in ("boxes", "classes", "crowd", "area")}
    assert kinds == {"boxes": "float32", "classes": "int32", "crowd": "bool", "area": "float32"}


def test_an_image_without_annotations_is_ordinary(tmp_path):
    example = write(tmp_path, content())[1]
    assert example["boxes"].shape == (0, 4) and example["masks"] == [] and example["crowd"].shape == (0,)


def test_what_encloses_nothing_is_left_out_and_counted(tmp_path, caplog):
    what = content()
    first = what["annotations"][0]
    empty = rle.encode(np.zeros((20, 30)))
    changes = [{"segmentation": []}, {"segmentation": [[1, 1, 5, 5]]}, {"segmentation": empty}, {"area": 0},
               {"bbox": [5, 3, 0, 6]}, {"segmentation": [], "bbox": None}]  # fmt: skip
    for i, change in enumerate(changes):
        what["annotations"].append({**first, **change, "id": 10 + i})
    del what["annotations"][-1]["bbox"]
    with caplog.at_level(logging.WARNING):
        dataset = write(tmp_path, what)
    assert dataset.left_out == 6 and len(dataset[0]["masks"]) == 3 and "6 annotations" in caplog.text
    truth = {a["id"]: a for a in dataset.ground_truth()["annotations"]}
    assert {10, 11, 15}.isdisjoint(truth) and {12, 13, 14} <= set(truth)  # COCO's scores count what has a mask
    assert truth[13]["area"] == 0 and truth[12]["area"] == first["area"] and truth[14]["bbox"] == [5, 3, 0, 6]


def test_boxes_and_areas_that_are_absent_are_the_masks(tmp_path):
    what = content()
    for annotation in what["annotations"]:
        del annotation["bbox"], annotation["area"]
    example = write(tmp_path, what)[0]
    np.testing.assert_array_equal(example["boxes"], np.float32([[5, 3, 12, 9]] * 3))
    assert example["area"].tolist() == [42] * 3


def test_boxes_are_clipped_to_the_image(tmp_path):
    what = content()
    what["annotations"][0]["bbox"] = [-0.4, 3, 30.9, 17.2]
    np.testing.assert_allclose(write(tmp_path, what)[0]["boxes"][0], [0, 3, 30, 20])


def test_the_ground_truth_scores_itself(tmp_path):
    truth = write(tmp_path, content()).ground_truth()
    found = [{**a, "score": 1.0} for a in truth["annotations"] if not a["iscrowd"]][:2]
    scores = average_precision.evaluate(truth, found, iou_type="segm")
    assert scores["per_class"][4]["AP"] == pytest.approx(1) and scores["per_class"][2]["AP"] == -1


def _set(kind, number, **change):
    def apply(what):
        what[kind][number].update(change)

    return apply


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_set("annotations", 1, category_id=9), "annotation 2 has the category_id 9"),
        (_set("annotations", 1, image_id=9), "annotation 2 has the image_id 9"),
        (_set("annotations", 1, image_id=[9]), r"annotation 2 has the image_id \[9\]"),
        (_set("annotations", 1, id=1), "two annotations have the id 1"),
        (_set("annotations", 1, iscrowd=2), "annotation 2 has iscrowd 2"),
        (_set("annotations", 1, bbox=[25, 3, 7, 6]), r"annotation 2 has the bbox \[25, 3, 7, 6\].*outside.*30x20"),
        (_set("annotations", 1, bbox=[5, 3, -7, 6]), r"annotation 2 has the bbox \[5, 3, -7, 6\]"),
        (_set("annotations", 1, bbox=[5, 3, 7]), "annotation 2 has the bbox"),
        (_set("annotations", 1, bbox=[5, 3, 7, float("nan")]), "annotation 2 has the bbox"),
        (_set("annotations", 1, area=-1), "annotation 2 has the area -1"),
        (_set("annotations", 1, area=10**400), "annotation 2 has the area 10"),
        (_set("categories", 1, id=10**30), "the category .* needs a whole"),
        (_set("images", 1, file_name=5000 * "n"), "1 images whose files are missing"),
        (_set("annotations", 1, segmentation=None), "annotation 2 has the segmentation .None"),
        (_set("annotations", 1, segmentation=[[1, 2, 3]]), "annotation 2 has the polygon"),
        (
            _set("annotations", 1, segmentation={"size": [20, 30], "counts": [5]}),
            "annotation 2 .*sum 5: expected 20 x 30",
        ),
        (_set("annotations", 1, segmentation=rle.encode(np.ones((30, 20)))), r"annotation 2 has the size \[30, 20\]"),
        (_set("annotations", 1, segmentation={"size": [20, 30], "counts": "p"}), "annotation 2 has damaged"),
        (_set("images", 1, id=11), "two images have the id 11"),
        (_set("images", 1, height=0), "image 5 has the height"),
        (_set("images", 1, file_name=""), "image 5 has the file_name"),
        (_set("images", 1, file_name="c.png"), "1 images whose files are missing: .*c.png"),
        (_set("categories", 1, name="cell"), "categories: class names must differ"),
        (_set("categories", 1, id="x"), "category"),
        (lambda what: what.pop("categories"), "categories"),
        (lambda what: what.update(annotations={}), "annotations"),
    ],
)
def test_bad_files_are_named(tmp_path, change, match):
    what = content()
    change(what)
    with pytest.raises(InputError, match=match) as caught:
        write(tmp_path, what)
    assert "instances_train.json" in str(caught.value)


def test_other_bad_input(tmp_path):
    with pytest.raises(InputError, match=r"instances_train.json: cannot be read as JSON"):
        write(tmp_path, '{"images": [')
    with pytest.raises(InputError, match=r"instances_val.json: no such file .*instances_train.json"):
        coco.make(split="val", root=str(tmp_path))
    with pytest.raises(InputError, match="no such folder"):
        coco.make(split="val", root=str(tmp_path / "absent"))
    dataset = write(tmp_path, content())
    Image.fromarray(np.zeros((30, 20, 3), np.uint8)).save(tmp_path / "train" / "a.png")
    with pytest.raises(InputError, match=r"a.png is 20x30 .* says 30x20 of image 11"):
        dataset[0]
    (tmp_path / "train" / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="a.png: not an image"):
        dataset[0]


def test_the_real_set(data_dir):
    for split, images, count in (("train", 598, 26137), ("val", 66, 2849)):
        dataset = coco.make(split=split, root=str(data_dir), folder="nuclei")
        truth = dataset.ground_truth()
        assert len(dataset) == images and len(truth["annotations"]) == count and dataset.left_out == 0
        assert dataset.class_names == ("nucleus",)
    example = dataset[0]
    for mask, box, area in zip(example["masks"], example["boxes"], example["area"], strict=True):
        y, x = np.nonzero(rle.decode(mask))
        assert [x.min(), y.min(), x.max() + 1, y.max() + 1] == box.tolist() and len(x) == area
