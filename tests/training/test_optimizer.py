"""Optimizers against torch's update rules written out in NumPy; schedules against their formulas."""

import jax
import numpy as np
import optax
import pytest

from segjax.training import optimizer
from segjax.types import InputError

STEPS = 5
PARAMS = {"conv": {"kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)},
          "norm": {"scale": np.ones(4, np.float32), "bias": np.full(4, 0.5, np.float32)}}  # fmt: skip


def gradients(seed=0):
    rng = np.random.default_rng(seed)
    return [jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(np.float32), PARAMS) for _ in range(STEPS)]


def run(tx):
    params, opt_state = jax.tree.map(np.copy, PARAMS), tx.init(PARAMS)
    for gradient in gradients():
        updates, opt_state = tx.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
    return params


def sgd(rates, *, momentum, nesterov, decay, clip=0.0):
    """torch.optim.SGD, the loop of its documentation; decay: {leaf path: weight decay}."""
    params, buffers = {}, {}
    for rate, gradient in zip(rates, gradients(), strict=True):
        flat = jax.tree_util.tree_leaves_with_path(gradient)
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for _, g in flat))
        start = dict(jax.tree_util.tree_leaves_with_path(PARAMS))
        for path, g in flat:
            w = params.get(path, start[path].astype(np.float64))
            g = g * (min(1.0, clip / norm) if clip else 1.0) + decay[path[-1].key] * w
            v = buffers[path] = momentum * buffers[path] + g if path in buffers else g
            params[path] = w - rate * (g + momentum * v if nesterov else v)
    return list(params.values())


def assert_close(mine, expected):
    for a, b in zip(jax.tree.leaves(mine), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("everywhere", [False, True])
def test_sgd_is_torchs_with_coupled_decay(nesterov, everywhere):
    tx, rate = optimizer.make_optimizer(
        name="sgd", learning_rate=0.1, total_steps=STEPS, warmup_steps=2, momentum=0.9, nesterov=nesterov,
        weight_decay=0.1, decay_norm_and_bias=everywhere, clip_norm=1.5,
    )  # fmt: skip
    other = 0.1 if everywhere else 0.0
    decay = {"kernel": 0.1, "scale": other, "bias": other}
    rates = [float(rate(t)) for t in range(STEPS)]
    assert_close(run(tx), sgd(rates, momentum=0.9, nesterov=nesterov, decay=decay, clip=1.5))


def test_adamw_is_torchs():
    tx, _ = optimizer.make_optimizer(
        name="adamw", learning_rate=0.1, schedule="constant", total_steps=STEPS, weight_decay=0.2, b1=0.8, b2=0.9
    )
    expected = []
    for leaf, (path, start) in enumerate(jax.tree_util.tree_leaves_with_path(PARAMS)):
        w, m, v = start.astype(np.float64), 0.0, 0.0
        for t, gradient in enumerate(gradients(), start=1):
            g = jax.tree.leaves(gradient)[leaf].astype(np.float64)
            w = w * (1 - 0.1 * (0.2 if path[-1].key == "kernel" else 0.0))
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
            w = w - 0.1 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8)
        expected.append(w)
    assert_close(run(tx), expected)


def test_decay_is_for_kernels_only():
    params = {
        "a": {"kernel": np.ones((3, 3, 1, 2)), "bias": np.ones(2)},
        "b": {"scale": np.ones((1, 2)), "gain": np.ones(2)},
    }
    assert optimizer.decays(params) == {"a": {"kernel": True, "bias": False}, "b": {"scale": False, "gain": False}}


@pytest.mark.parametrize("name", optimizer.SCHEDULES)
@pytest.mark.parametrize(("total", "warmup"), [(900, 100), (10, 0), (1, 0), (1, 1), (5, 50)])
def test_schedule_is_its_formula(name, total, warmup):
    rate = optimizer.make_schedule(name, learning_rate=0.3, power=0.9, total_steps=total, warmup_steps=warmup)
    after = {"poly": lambda t: (1 - t / total) ** 0.9, "cosine": lambda t: (1 + np.cos(np.pi * t / total)) / 2,
             "constant": lambda t: 1.0,
             "steps": lambda t: 0.1 ** sum(t >= round(m * total) for m in (2 / 3, 8 / 9))}[name]  # fmt: skip
    expected = [0.3 * ((t + 1) / warmup if t < warmup else after(t)) for t in range(total)]
    np.testing.assert_allclose(jax.vmap(rate)(np.arange(total)), expected, rtol=1e-5)
    assert all(value > 0 for value in expected)  # no step is lost, the first and the last included
    beyond = float(rate(max(total, warmup) + 3))
    np.testing.assert_allclose(beyond, {"constant": 0.3, "steps": 0.003}.get(name, 0.0), rtol=1e-5, atol=1e-9)


def test_the_milestones_are_those_of_the_one_times_schedule():
    rate = optimizer.make_schedule("steps", learning_rate=0.02, total_steps=90_000, warmup_steps=1000)
    steps, rates = (999, 59_999, 60_000, 79_999, 80_000, 89_999), (0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002)
    np.testing.assert_allclose([float(rate(step)) for step in steps], rates, rtol=1e-5)


def test_the_update_uses_the_schedule_from_its_first_step():
    tx, rate = optimizer.make_optimizer(name="sgd", learning_rate=1.0, total_steps=4, warmup_steps=2, momentum=0.0)
    params, opt_state, seen = np.zeros(1, np.float32), tx.init(np.zeros(1, np.float32)), []
    for _ in range(4):
        updates, opt_state = tx.update(np.ones(1, np.float32), opt_state, params)
        seen.append(-float(updates[0]))
    np.testing.assert_allclose(seen, [0.5, 1.0, 0.5**0.9, 0.25**0.9], rtol=1e-6)
    np.testing.assert_allclose(seen, [float(rate(t)) for t in range(4)], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "lion"}, "'lion' is unknown; known: sgd, adamw"),
        ({"schedule": "step"}, "'step' is unknown; known: poly, cosine, constant"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"total_steps": 0}, "total_steps is 0"),
        ({"warmup_steps": -1}, "warmup_steps -1"),
        ({"milestones": (0.5, 1.0)}, r"milestones are \(0.5, 1.0\)"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0"),
        ({"rate_factors": (("head/*", -1.0),)}, r"rate_factors has \('head/\*', -1.0\)"),
        ({"rate_factors": ("head/*", 2.0)}, "rate_factors has 'head/"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(InputError, match=words):
        optimizer.make_optimizer(**{"name": "sgd", "learning_rate": 0.1, "total_steps": 5, **options})


def test_a_leaf_s_rate_is_multiplied_by_the_factors_of_its_patterns():
    options = {"name": "sgd", "learning_rate": 0.1, "total_steps": 5, "weight_decay": 0.1}
    tx, _ = optimizer.make_optimizer(**options, rate_factors=(("*/bias", 2.0), ["norm/*", 5.0]))
    plain, _ = optimizer.make_optimizer(**options)
    gradient = gradients()[0]
    (got, _), (base, _) = (t.update(gradient, t.init(PARAMS), PARAMS) for t in (tx, plain))
    for module, name, factor in (("conv", "kernel", 1), ("norm", "scale", 5), ("norm", "bias", 10)):
        np.testing.assert_allclose(got[module][name], factor * base[module][name], rtol=1e-6)
    with pytest.raises(InputError, match="no parameter matches 'head/\\*'"):
        optimizer.make_optimizer(**options, rate_factors=(("head/*", 2.0),))[0].init(PARAMS)
