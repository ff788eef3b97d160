"""Cross entropy against its formula in NumPy float64; ignored pixels to the bit."""

import functools

import jax
import numpy as np
import pytest

from segjax import losses
from segjax.losses import cross_entropy
from segjax.types import InputError

IGNORE = 255


def formula(logits, label, num_classes, weight=None, class_weights=None, label_smoothing=0.0):
    """The module's two sums, a loop over the pixels that count, float64."""
    per_class = np.ones(num_classes) if class_weights is None else np.asarray(class_weights, np.float64)
    total = mass = 0.0
    for index in np.ndindex(label.shape):
        y, p = label[index], 1.0 if weight is None else float(weight[index])
        if 0 <= y < num_classes and y != IGNORE and p > 0:
            z = logits[index].astype(np.float64)
            log_q = z - z.max() - np.log(np.exp(z - z.max()).sum())
            smooth = (per_class * -log_q).sum() * label_smoothing / num_classes
            total += p * ((1 - label_smoothing) * per_class[y] * -log_q[y] + smooth)
            mass += p * per_class[y]
    return total, mass


def sample(num_classes=5, seed=0, label_type=np.int32):
    rng = np.random.default_rng(seed)
    logits = (4 * rng.standard_normal((2, 5, 7, num_classes))).astype(np.float32)
    label = rng.integers(0, num_classes, (2, 5, 7))
    label = np.where(rng.random(label.shape) < 0.3, IGNORE, label).astype(label_type)
    weight = np.where(rng.random(label.shape) < 0.2, 0, 3 * rng.random(label.shape)).astype(np.float32)
    return logits, label, weight


OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"class_weights": (0.5, 2.0, 1.0, 0.0, 3.0)},
    {"label_smoothing": 0.3, "class_weights": (0.5, 2.0, 1.0, 0.0, 3.0)},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_value_is_the_formula_and_gradient_its_difference_quotient(options, weighted):
    logits, label, weight = sample()
    batch = {"label": label, "valid": np.ones(2, bool), **({"weight": weight} if weighted else {})}
    loss = losses.build("cross_entropy", num_classes=5, ignore_label=IGNORE, **options)

    def total(z):
        return loss({"logits": z}, batch)["cross_entropy"][0]

    def exact(z):
        return formula(z, label, 5, weight if weighted else None, **options)

    value, mass = jax.jit(lambda z: loss({"logits": z}, batch)["cross_entropy"])(logits)
    np.testing.assert_allclose([value, mass], exact(logits), rtol=1e-5)
    direction = np.random.default_rng(1).standard_normal(logits.shape)
    step = 1e-5
    quotient = (exact(logits + step * direction)[0] - exact(logits - step * direction)[0]) / (2 * step)
    slope = (np.asarray(jax.jit(jax.grad(total))(logits), np.float64) * direction).sum()
    np.testing.assert_allclose(slope, quotient, rtol=1e-4)


@pytest.mark.parametrize("num_classes", [2, 40])  # few classes are reduced one by one on a CPU, many are not
def test_gradient_is_softmax_minus_one_hot(num_classes):
    logits, label, _ = sample(num_classes, label_type=np.uint8)
    loss = losses.build("cross_entropy", num_classes=num_classes, ignore_label=IGNORE)
    gradient = jax.grad(lambda z: loss({"logits": z}, {"label": label})["cross_entropy"][0])(logits)
    softmax = np.exp(logits - logits.max(-1, keepdims=True)).astype(np.float64)
    expected = softmax / softmax.sum(-1, keepdims=True) - (np.arange(num_classes) == label[..., None])
    np.testing.assert_allclose(gradient, np.where(label[..., None] == IGNORE, 0, expected), atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("bad", [7.0, 1e30, np.inf, np.nan])
def test_what_stands_under_ignored_pixels_changes_no_bit(options, bad):
    logits, label, weight = sample()
    label[0, 0, :3] = [-1, 5, 200]  # outside [0, K), not the ignore label
    batch = {"label": label, "valid": np.array([True, False]), "weight": weight}
    ignored = (label < 0) | (label >= 5) | (weight == 0) | ~batch["valid"][:, None, None]
    assert 20 < ignored.sum() < 60
    loss = losses.build("cross_entropy", num_classes=5, ignore_label=IGNORE, **options)

    @jax.jit
    def run(z):
        def total(z):
            terms = loss({"logits": z}, batch)
            return terms["cross_entropy"][0], terms

        return jax.value_and_grad(total, has_aux=True)(z)

    expected, changed = run(logits), run(np.where(ignored[..., None], np.float32(bad), logits))
    for mine, theirs in zip(jax.tree.leaves(changed), jax.tree.leaves(expected), strict=True):
        assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()
    assert np.isfinite(expected[1]).all() and not np.asarray(expected[1])[ignored].any()


def test_nothing_counted_is_zero_with_a_zero_gradient():
    logits, label, _ = sample()
    loss = losses.build("cross_entropy", num_classes=5, ignore_label=IGNORE)
    batch = {"label": np.full_like(label, IGNORE)}
    (total, mass), gradient = (
        loss({"logits": logits}, batch)["cross_entropy"],
        jax.grad(lambda z: loss({"logits": z}, batch)["cross_entropy"][0])(logits),
    )
    assert float(total) == float(mass) == 0.0 and not np.asarray(gradient).any()


def test_large_logits_stay_finite():
    logits = np.array([[[[1e4, -1e4, 0.0]]]], np.float32)
    for label, expected in ((0, 0.0), (1, 2e4)):
        total = functools.partial(cross_entropy.loss, num_classes=3, ignore_label=IGNORE)
        value, _ = total({"logits": logits}, {"label": np.full((1, 1, 1), label)})["cross_entropy"]
        assert float(value) == expected


def test_wrong_options_are_named():
    logits, label, _ = sample()
    with pytest.raises(InputError, match="'focus' is unknown.*cross_entropy"):
        losses.build("focus", num_classes=5, ignore_label=IGNORE)
    with pytest.raises(InputError, match="'smoothing'.*class_weights, label_smoothing, top_k"):
        losses.build("cross_entropy", num_classes=5, ignore_label=IGNORE, smoothing=0.1)
    for options, words in (
        ({"num_classes": 6}, r"expected \(2, 5, 7, 6\)"),
        ({"num_classes": 5, "class_weights": (1, 2)}, "2 values.*5"),
        ({"num_classes": 5, "label_smoothing": 1.5}, "1.5"),
    ):
        with pytest.raises(ValueError, match=words):
            cross_entropy.loss({"logits": logits}, {"label": label}, ignore_label=IGNORE, **options)
