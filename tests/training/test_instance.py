"""What is refused of an instance run before it starts, and of its scores what nothing could be found for."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from segjax.data.metadata import Classes
from segjax.inference import instance_evaluation
from segjax.metrics import average_precision
from segjax.training import instance, tasks
from segjax.types import InputError


class Empty:
    """Images without objects, of two classes."""

    instances, name, split = True, "empty", "val"
    classes = Classes(("a", "b"))
    class_names, category_ids = classes.names, np.array([3, 5])

    def __init__(self, *sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def describe(self, i):
        return f"image {i}"

    def image_size(self, i):
        return self.sizes[i]

    def __getitem__(self, i):
        none = {"boxes": np.zeros((0, 4), np.float32), "classes": np.zeros(0, np.int32), "crowd": np.zeros(0, bool)}
        return {"image": np.zeros((*self.sizes[i], 3), np.uint8), "masks": [], **none}


def config_of(fit="crop"):
    data = {"size": (8, 8), "sizes": (), "fit": fit, "mask_size": 4, "max_instances": 2}
    return ConfigDict({"data": data, "eval": {"sizes": ((8, 8), (16, 12))}, "model": {"name": "mask_rcnn"}})


def test_an_image_that_no_canvas_of_the_evaluation_holds_is_refused_before_training():
    dataset = Empty((8, 8), (16, 12), (9, 13))
    with pytest.raises(InputError, match=r"image 2 is 13x9.*larger eval\.sizes"):
        instance.read_all(config_of(), dataset, None, evaluated=True, cache=False)
    instance.read_all(config_of(), Empty((8, 8), (16, 12)), None, evaluated=True, cache=False)
    instance.read_all(config_of(), dataset, None, evaluated=False, cache=False)
    instance.read_all(config_of("pad"), dataset, None, evaluated=True, cache=False)


def test_a_class_without_objects_has_no_score():
    result = instance_evaluation.evaluate(None, {}, [], Empty((4, 4)))
    assert np.isnan(result["ap"]).all() and result["mask"]["per_class"][3]["AP"] == -1
    assert result["mask_ap"] == -1 and result["results"] == []


def test_average_precision_at_every_limit_is_that_of_an_evaluation_with_it():
    generator = np.random.default_rng(0)
    corners = generator.integers(0, 60, (2, 12, 2))
    images = [{"id": i, "height": 80, "width": 80} for i in (1, 2)]
    boxes = [[(int(x), int(y), 12, 12) for x, y in rows] for rows in corners]
    truth = {"images": images, "categories": [{"id": 3, "name": "a"}, {"id": 5, "name": "b"}], "annotations": [
        {"id": 20 * i + k + 1, "image_id": i + 1, "category_id": 3, "bbox": box, "area": 144, "iscrowd": 0}
        for i, some in enumerate(boxes) for k, box in enumerate(some)
    ]}  # fmt: skip
    found = [{"image_id": a["image_id"], "category_id": 3, "bbox": (a["bbox"][0] + a["id"] % 3, *a["bbox"][1:]),
              "score": float(generator.random())} for a in truth["annotations"]]  # fmt: skip
    limits = instance_evaluation.at_limits(average_precision.evaluate(truth, found, max_dets=(1, 4, 12)))
    assert list(limits) == [1, 4, 12] and limits[1]["AP50"] < limits[4]["AP50"] < limits[12]["AP50"]
    for limit, numbers in limits.items():
        alone = average_precision.evaluate(truth, found, max_dets=(limit,))
        assert numbers == {key: pytest.approx(alone[key], abs=1e-12) for key in ("AP", "AP50", "AP75")}


@pytest.mark.parametrize(("model", "objects", "words"), [
    ("deeplab", True, "has objects and no class for each pixel"),
    ("mask_rcnn", False, "has a class for each pixel and no objects"),
])  # fmt: skip
def test_a_set_of_the_other_kind_is_refused(model, objects, words):
    config = ConfigDict({"model": {"name": model}, "data": {"name": "mine"}})
    dataset = Empty()
    dataset.instances = objects
    with pytest.raises(InputError, match=f"'mine' {words}.*'{model}'"):
        tasks.check_set(config, dataset)
    dataset.instances = not objects
    tasks.check_set(config, dataset)
