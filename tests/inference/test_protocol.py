"""The protocol: every rule of the evaluation is in it, and a rule that changes changes its id."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from segjax import config as configs
from segjax.inference import protocol as protocols
from segjax.inference.protocol import check, differences, protocol
from segjax.inference.views import WHOLE, Views
from segjax.training.tasks import completed
from segjax.types import InputError


def config() -> ConfigDict:
    return ConfigDict(
        {
            "data": {"size": (192, 256), "fit": "stretch", "split": "val"},
            "augment": {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "flip": 0.5},
            "model": {"name": "unet"},
            "train": {"dtype": "float32"},
            "eval": {"resolution": "native", "absent": "skip", "batch_size": 8},
        }
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.size", "384,512"),
        ("data.fit", "pad"),
        ("augment.mean", "0,0,0"),
        ("augment.std", "1,1,1"),
        ("train.dtype", "bfloat16"),
        ("eval.resolution", "input"),
        ("eval.absent", "zero"),
        ("eval.scales", "0.5,1.0"),
        ("eval.flip", "true"),
        ("eval.batch_norm", "batch"),
        ("eval.batch_norm", "reestimated"),
        ("eval.convention", "fcn"),
    ],
)
def test_a_rule_changes_the_id(key, value):
    before = protocol(config(), ema=False)
    after = protocol(configs.override(completed(config()), {key: value}), ema=False)
    assert before["id"] != after["id"] and differences(before, after)
    json.dumps(after)


def test_speed_weights_and_training_do_not():
    before = protocol(config(), ema=False)
    other = configs.override(config(), {"eval.batch_size": 1, "augment.flip": 0.0, "data.split": "test"})
    assert protocol(other, ema=False) == before
    assert protocol(config(), ema=True)["id"] == before["id"]
    assert differences(before, protocol(config(), ema=True)) == ["ema: False -> True"]
    assert differences(before, before) == []


def test_a_config_of_before_means_the_defaults_and_keeps_its_id():
    before, after = protocol(config(), ema=False), protocol(completed(config()), ema=False)
    assert (
        before == after
        and before["id"] == "66bb7e035dc1"
        and not {"window", "stride", "convention", "combined"} & set(after)
    )
    assert protocols.views(config()) == WHOLE and protocols.batch_norm(config()) == "running"
    options = protocols.options(config())
    assert (options["resolution"], options["absent"], options["convention"]) == ("native", "skip", "segjax")


def test_windows_enter_the_rules():
    slide = chosen({"eval.protocol": "slide", "eval.window": "96,60"})
    assert protocols.views(slide) == Views(window=(96, 60), stride=(64, 40))
    found = protocol(slide, ema=False)
    assert (found["window"], found["stride"]) == ([96, 60], [64, 40]) and "sliding window" in found["inference"]
    other = protocol(configs.override(slide, {"eval.stride": "96,60"}), ema=False)
    assert differences(found, other) == ["stride: [64, 40] -> [96, 60]"] and found["id"] != other["id"]
    crop = chosen({"eval.protocol": "crop", "eval.window": "96,60", "eval.resolution": "input"})
    found = protocol(crop, ema=False)
    assert found["inference"] == "central crop" and found["window"] == [96, 60] and "stride" not in found
    assert protocols.views(crop) == WHOLE and protocols.options(crop)["resolution"] == "native"


def test_the_batch_enters_where_its_statistics_count():
    for mode in ("batch", "reestimated"):
        one, other = (chosen({"eval.batch_norm": mode, "eval.batch_size": n}) for n in (8, 4))
        assert protocol(one, ema=False)["id"] != protocol(other, ema=False)["id"]


def test_rows_that_only_fill_a_batch_leave_its_statistics_alone():
    batch = {"image": np.arange(3), "valid": np.array([True, False, True])}
    empty = {"image": np.arange(2), "valid": np.zeros(2, bool)}
    (kept,) = protocols.batches(chosen({"eval.batch_norm": "batch"}), [batch, empty], 255)
    assert kept["image"].tolist() == [0, 2] and kept["valid"].all()
    assert protocols.batches(config(), [batch], 255) == [batch]


def chosen(values):
    found = configs.override(completed(config()), values)
    check(found)
    return found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"protocol": "slied"}, "eval.protocol='slied': expected one of whole, crop, slide; did you mean slide?"),
        ({"convention": "voc"}, "eval.convention='voc': expected one of segjax, fcn, torchvision, mmsegmentation"),
        ({"batch_norm": "population"}, "eval.batch_norm='population': expected one of running, reestimated, batch"),
        ({"protocol": "slide"}, "needs a window, such as eval.window=512,512"),
        ({"window": (8, 8)}, r"eval.window=\(8, 8\) is of eval.protocol=crop and slide, which is 'whole'"),
        ({"protocol": "crop", "window": (8, 8), "stride": (4, 4)}, "eval.stride=.* is of eval.protocol=slide"),
        ({"protocol": "slide", "window": (999, 999)}, r"eval.window=\(999, 999\): nothing slides, .*data.size="),
        ({"protocol": "slide", "window": (8,)}, r"eval.window=\(8,\): expected \(rows, columns\)"),
        ({"protocol": "slide", "window": (8, 0)}, "eval.window"),
        ({"protocol": "slide", "window": (8, 8), "stride": (4, 9)}, "expected at most eval.window"),
        ({"protocol": "crop", "window": (8, 8)}, "eval.resolution=input"),
        ({"scales": ()}, "eval.scales"),
        ({"scales": (0.5, -1.0)}, "eval.scales"),
    ],
)
def test_a_protocol_that_cannot_be_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        chosen({f"eval.{key}": value for key, value in values.items()})


def test_training_and_prediction_take_running_statistics():
    protocols.check_running(config())
    with pytest.raises(InputError, match="eval.batch_norm='batch' is of segjax.evaluate alone"):
        protocols.check_running(chosen({"eval.batch_norm": "batch"}))
