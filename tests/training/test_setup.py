"""A config that cannot run is refused before any work, with the key and what to write."""

import types

import jax
import numpy as np
import pytest

from segjax import config as configs
from segjax.data.metadata import Classes
from segjax.training import optimizer, parallel, setup, state
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


SMALL = {"data.size": (32, 32), "model.width": 0.125, "model.decoder_channels": 8, "model.aspp_channels": 8}


@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("loss.class_weights", (1.0, 2.0), "class_weights has 2 values, expected one per class: 3"),
        ("loss.class_weights", (1.0, -2.0, 1.0), "class_weights is .* at least 0"),
        ("loss.label_smoothing", 1.5, "label_smoothing is 1.5"),
    ],
)
def test_what_only_the_traced_step_refuses_is_told_with_its_sections(config, monkeypatch, mode, key, value, message):
    config = configs.override(config, {**SMALL, "train.parallel": mode, key: value})
    shapes = jax.eval_shape(lambda: setup.first_state(config, 3))
    monkeypatch.setattr(setup, "first_state", lambda *_: shapes)  # only shapes are read before the refusal
    with pytest.raises(InputError, match=f"^sections model, loss, optimizer, augment of the config: {message}"):
        setup.build(config, Classes(names=("a", "b", "c")))


@pytest.mark.parametrize("worker_mode, kept", [("threads", True), ("processes", False)])
def test_reading_all_fills_a_cache_only_where_it_will_be_read(config, monkeypatch, worker_mode, kept):
    asked = []
    one = types.SimpleNamespace(classes=None, class_names=("a",), split="x")
    monkeypatch.setattr(setup.data, "from_config", lambda *_, **__: one)
    monkeypatch.setattr(setup.pipeline, "verify", lambda *_, cache, **__: asked.append(cache))
    setup.open_sets(configs.override(config, {"data.worker_mode": worker_mode}))
    setup.open_sets(configs.override(config, {"data.worker_mode": worker_mode, "data.cache": False}))
    assert asked == [kept, kept, False, False]


def test_a_single_pass_over_the_data_keeps_nothing(config, monkeypatch):
    asked = []
    monkeypatch.setattr(setup.pipeline, "eval_batches", lambda *_, cache, **__: asked.append(cache))
    setup.eval_batches(config, None)
    setup.eval_batches(config, None, cache=False)
    assert asked == [True, False]


def test_auxiliary_logits_and_a_sum_of_losses_reach_the_step(config, monkeypatch):
    """The terms are those of both heads, on many devices under pmap as under jit; a ratio is not accumulated."""

    class Net:
        def apply(self, variables, image, *, train, targets, key):
            del train, targets, key
            logits = image * variables["params"]["scale"].reshape(1, 1, 1, 3)
            return {"logits": logits, "aux_logits": 0.5 * logits}, {}

    monkeypatch.setattr(setup, "build_model", lambda *_: Net())
    rng, classes = np.random.default_rng(0), Classes(names=("a", "b", "c"))
    batch = {
        "image": rng.integers(0, 256, (8, 8, 8, 3), np.uint8),
        "label": rng.integers(0, 3, (8, 8, 8)).astype(np.int32),
        "valid": np.arange(8) < 7,
    }
    results = []
    for mode in ("jit", "pmap"):
        small = {"data.size": (8, 8), "loss.name": "cross_entropy+0.5*dice", "train.parallel": mode}
        chosen = configs.override(config, {**small, "optimizer.name": "sgd", "optimizer.warmup_steps": 0})
        tx, _ = optimizer.make_optimizer(total_steps=chosen.train.steps, **chosen.optimizer)
        variables = {"params": {"scale": np.ones(3, np.float32)}, "batch_stats": {}}
        first = state.create(variables, tx, key=jax.random.key(0), ema=chosen.train.ema_decay > 0)
        train_step = setup.make_step(chosen, classes)
        mesh = parallel.make_mesh()
        run = parallel.pmap_step(train_step) if mode == "pmap" else parallel.jit_step(train_step, mesh)
        new, metrics = run(first, batch)
        names = ["aux_cross_entropy", "aux_dice", "cross_entropy", "dice"]
        assert sorted(set(metrics) - {"loss", "grad_norm", "finite", "grad_squares"}) == names
        results.append([*(float(metrics[name]) for name in names), *np.asarray(new.params["scale"])])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)
    with pytest.raises(ValueError, match="do not add up"):
        setup.make_step(configs.override(chosen, {"train.accumulate": 2}), classes)
