"""A config that cannot run is refused before any work, with the key and what to write."""

import jax
import pytest

from segjax import config as configs
from segjax.data.metadata import Classes
from segjax.training import setup
from segjax.types import InputError


@pytest.fixture
def config():
    return configs.load_experiment("experiments/deeplab.py:camvid")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("train.dtype", "float16", "train.dtype='float16': expected one of float32, bfloat16"),
        ("train.parallel", "ddp", "train.parallel='ddp': expected one of jit, pmap"),
        ("data.fit", "squash", "data.fit='squash'"),
        ("eval.resolution", "half", "eval.resolution='half'"),
        ("eval.absent", "nan", "eval.absent='nan'"),
        ("train.steps", 0, "train.steps=0: expected at least 1"),
        ("data.size", (0, 4), r"data.size=\(0, 4\)"),
        ("train.ema_decay", 1.0, "train.ema_decay=1.0"),
        ("eval.ema", True, "eval.ema=True needs a moving average"),
        ("train.batch_size", 10, "train.batch_size=10 does not divide into 4 .* try 8 or 12"),
    ],
)
def test_illegal_values_are_named(config, key, value, message):
    setup.check(config, devices=4)
    with pytest.raises(InputError, match=message):
        setup.check(configs.override(config, {key: value}), devices=4)


@pytest.mark.parametrize(
    "key, value, hint", [("model.backbone", "resnet5", "resnet50"), ("loss.name", "cross_entrop", "cross_entropy")]
)
def test_unknown_names_list_the_known(config, key, value, hint):
    with pytest.raises(InputError, match=hint):
        setup.make_step(configs.override(config, {key: value}), Classes(names=("a", "b")))
        setup.first_state(configs.override(config, {key: value}), 2)


def test_the_first_state_depends_on_the_seed_alone(config):
    config = configs.override(config, {"data.size": (32, 32), "model.width": 0.25, "model.decoder_channels": 8})
    same = [setup.first_state(config, 3).params["head"]["kernel"] for _ in range(2)]
    other = setup.first_state(configs.override(config, {"seed": 1}), 3).params["head"]["kernel"]
    assert (same[0] == same[1]).all() and not (same[0] == other).all()
    assert jax.tree.leaves(setup.first_state(config, 3).ema) == []
