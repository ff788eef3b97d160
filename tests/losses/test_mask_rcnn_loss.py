"""The five losses of Mask R-CNN against loops over anchors, regions and pixels in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from segjax import losses

K = 2
DIFFERENTIABLE = ("rpn_logits", "rpn_deltas", "class_logits", "box_deltas", "mask_logits")
FACTORS = {"rpn_objectness": 0.5, "rpn_box": 2.0, "classification": 3.0, "box": 0.25, "mask": 1.5}


def sample(rows=3, beta=1 / 9, fixed=False, seed=0):
    """Outputs of a model in training: 6 anchors, 3 of them possibly objects; 5 regions, 2 of them possibly objects."""
    rng = np.random.default_rng(seed)
    some = lambda share, *shape: (rng.random((rows, *shape)) < share).astype(np.float32)
    weight = some(0.8, 6)
    outputs = {
        "rpn_logits": 2 * rng.normal(size=(rows, 6)),
        "rpn_labels": some(0.4, 6),
        "rpn_weight": weight,
        "rpn_normalizer": np.full(rows, 6.0) if fixed else weight.sum(axis=1),
        "rpn_deltas": 0.2 * rng.normal(size=(rows, 3, 4)),
        "rpn_targets": 0.2 * rng.normal(size=(rows, 3, 4)),
        "rpn_positive": some(0.6, 3),
        "box_beta": np.full(rows, beta),
        "class_logits": 2 * rng.normal(size=(rows, 5, K + 1)),
        "class_columns": rng.integers(0, K + 1, (rows, 5)),
        "class_weight": some(0.8, 5),
        "box_deltas": 0.2 * rng.normal(size=(rows, 2, 4)),
        "box_targets": 0.2 * rng.normal(size=(rows, 2, 4)),
        "box_positive": some(0.6, 2),
        "mask_logits": 2 * rng.normal(size=(rows, 2, 4, 4)),
        "mask_targets": rng.random((rows, 2, 4, 4)),
    }
    return {name: np.asarray(x, np.int32 if name == "class_columns" else np.float32) for name, x in outputs.items()}


def by_hand(o):
    """{term: (sum, weight)} by plain loops."""
    o = {name: np.asarray(x, np.float64) for name, x in o.items()}
    beta = o["box_beta"][0]

    def bce(z, t):
        p = 1 / (1 + np.exp(-z))
        return -t * np.log(p) - (1 - t) * np.log(1 - p)

    def smooth(d):
        return d * d / (2 * beta) if d < beta else d - beta / 2

    rows = range(len(o["rpn_logits"]))
    total = dict.fromkeys(FACTORS, 0.0)
    for b in rows:
        for i in np.flatnonzero(o["rpn_weight"][b]):
            total["rpn_objectness"] += bce(o["rpn_logits"][b, i], o["rpn_labels"][b, i])
        for part, term in (("rpn", "rpn_box"), ("box", "box")):
            for i in np.flatnonzero(o[f"{part}_positive"][b]):
                difference = np.abs(o[f"{part}_deltas"][b, i] - o[f"{part}_targets"][b, i])
                total[term] += sum(smooth(d) for d in difference)
        for i in np.flatnonzero(o["class_weight"][b]):
            z = o["class_logits"][b, i]
            total["classification"] += np.log(np.exp(z).sum()) - z[int(o["class_columns"][b, i])]
        for i in np.flatnonzero(o["box_positive"][b]):
            total["mask"] += bce(o["mask_logits"][b, i], o["mask_targets"][b, i]).sum()
    n, m = o["rpn_normalizer"].sum(), o["class_weight"].sum()
    return {
        "rpn_objectness": (total["rpn_objectness"], n),
        "rpn_box": (total["rpn_box"], n),
        "classification": (total["classification"], m),
        "box": (total["box"], m),
        "mask": (total["mask"], 16 * o["box_positive"].sum()),
    }


def build(**options):
    return losses.build("mask_rcnn", num_classes=K, ignore_label=255, **options)


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
@pytest.mark.parametrize("fixed", [False, True])
def test_values_and_weights(beta, fixed):
    outputs = sample(beta=beta, fixed=fixed)
    found, expected = build()(outputs, {}), by_hand(outputs)
    assert set(found) == set(expected)
    for term, pair in expected.items():
        np.testing.assert_allclose(found[term], pair, rtol=1e-5, err_msg=term)


def test_factors_are_of_the_sums():
    outputs = sample()
    plain = build()(outputs, {})
    scaled = build(**{f"{term}_weight": factor for term, factor in FACTORS.items()})(outputs, {})
    for term, factor in FACTORS.items():
        np.testing.assert_allclose(scaled[term], (factor * plain[term][0], plain[term][1]), rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 1 / 9])
def test_gradients(beta):
    outputs = sample(beta=beta)

    def total(*values):
        terms = build()({**outputs, **dict(zip(DIFFERENTIABLE, values, strict=True))}, {})
        return sum(value for value, _ in terms.values())

    values = tuple(jnp.asarray(outputs[name]) for name in DIFFERENTIABLE)
    check_grads(total, values, order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-3)
    gradients = jax.grad(total, argnums=tuple(range(5)))(*values)
    for name, gradient in zip(DIFFERENTIABLE, gradients, strict=True):
        part = {"rpn_logits": "rpn_weight", "rpn_deltas": "rpn_positive", "class_logits": "class_weight"}
        counted = outputs[part.get(name, "box_positive")] > 0
        assert np.all(np.isfinite(gradient)) and np.any(np.asarray(gradient)[counted])
        assert not np.any(np.asarray(gradient)[~counted])


def test_parts_of_a_batch_add_up():
    outputs, loss = sample(rows=4), build()
    assert loss.additive
    whole = loss(outputs, {})
    parts = [loss({name: x[i::2] for name, x in outputs.items()}, {}) for i in range(2)]
    for term, pair in whole.items():
        np.testing.assert_allclose(np.sum([part[term] for part in parts], axis=0), pair, rtol=1e-6)


def test_nothing_sampled_is_zero_with_weight_zero():
    outputs = sample()
    for name in ("rpn_weight", "rpn_normalizer", "rpn_positive", "class_weight", "box_positive"):
        outputs[name] = np.zeros_like(outputs[name])
    assert not np.any(jax.tree.leaves(build()(outputs, {})))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="expected 4 columns"):
        losses.build("mask_rcnn", num_classes=3, ignore_label=255)(sample(), {})
    with pytest.raises(ValueError, match="mask_weight is -1"):
        build(mask_weight=-1)(sample(), {})
