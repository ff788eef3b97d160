"""What is refused of an instance run before it starts, and of its scores what nothing could be found for."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from segjax.data.metadata import Classes
from segjax.inference import instance_evaluation
from segjax.training import instance
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
