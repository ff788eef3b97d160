"""The protocol: every rule of the evaluation is in it, and a rule that changes changes its id."""

import json

import pytest
from ml_collections import ConfigDict

from segjax import config as configs
from segjax.inference.protocol import differences, protocol


def config() -> ConfigDict:
    return ConfigDict(
        {
            "data": {"size": (192, 256), "fit": "stretch", "split": "val"},
            "augment": {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "flip": 0.5},
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
    ],
)
def test_a_rule_changes_the_id(key, value):
    before, after = protocol(config(), ema=False), protocol(configs.override(config(), {key: value}), ema=False)
    assert before["id"] != after["id"] and differences(before, after)
    json.dumps(after)


def test_speed_weights_and_training_do_not():
    before = protocol(config(), ema=False)
    other = configs.override(config(), {"eval.batch_size": 1, "augment.flip": 0.0, "data.split": "test"})
    assert protocol(other, ema=False) == before
    assert protocol(config(), ema=True)["id"] == before["id"]
    assert differences(before, protocol(config(), ema=True)) == ["ema: False -> True"]
    assert differences(before, before) == []
