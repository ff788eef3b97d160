"""Sums of losses, their options, auxiliary heads; what each loss refuses; the corners of single losses."""

import formulas
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from formulas import IGNORE

from segjax import losses
from segjax.training import step
from segjax.types import InputError


def build(name, **options):
    return losses.build(name, num_classes=5, ignore_label=IGNORE, **options)


def values(loss, logits, batch, **more):
    terms = loss({"logits": logits, **more}, batch)
    return {name: float(total / weight) for name, (total, weight) in terms.items()}


def test_a_sum_adds_the_terms_with_their_factors():
    logits, batch = formulas.sample()
    found = values(build("cross_entropy + 0.5*dice+2 * lovasz", label_smoothing=0.1, smooth=1.0), logits, batch)
    expected = {
        "cross_entropy": formulas.cross_entropy(logits, batch, label_smoothing=0.1),
        "dice": 0.5 * formulas.dice(logits, batch, smooth=1.0),
        "lovasz": 2 * formulas.lovasz(logits, batch),
    }
    assert list(found) == list(expected)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)


def test_an_option_goes_to_every_loss_that_has_it_unless_one_has_its_own():
    logits, batch = formulas.sample()
    both = values(build("focal+tversky", gamma=3.0), logits, batch)
    own = values(build("focal+tversky", tversky={"gamma": 0.5}, gamma=3.0), logits, batch)
    assert both["focal"] == own["focal"] == pytest.approx(formulas.focal(logits, batch, gamma=3.0), rel=1e-5)
    assert both["tversky"] == pytest.approx(formulas.tversky(logits, batch, gamma=3.0), rel=1e-5)
    assert own["tversky"] == pytest.approx(formulas.tversky(logits, batch, gamma=0.5), rel=1e-5)


def test_the_auxiliary_head_gets_the_same_loss():
    logits, batch = formulas.sample()
    aux, _ = formulas.sample(seed=1)
    found = values(build("cross_entropy+dice", aux_weight=0.4), logits, batch, aux_logits=aux)
    alone = values(build("cross_entropy+dice"), aux, batch)
    assert list(found) == ["cross_entropy", "dice", "aux_cross_entropy", "aux_dice"]
    assert found["aux_dice"] == pytest.approx(0.4 * alone["dice"], rel=1e-6)
    assert found["aux_cross_entropy"] == pytest.approx(0.4 * alone["cross_entropy"], rel=1e-6)
    assert values(build("dice"), logits, batch, aux_logits=aux)["aux_dice"] == pytest.approx(0.5 * alone["dice"])
    assert list(values(build("dice", aux_weight=0.0), logits, batch, aux_logits=aux)) == ["dice"]


def test_additive_is_what_every_part_is():
    assert build("cross_entropy+focal").additive and build("lovasz", per_image=True).additive
    for name, options in (("cross_entropy+dice", {}), ("cross_entropy+focal", {"top_k": 0.5})):
        loss = build(name, **options)
        assert not loss.additive
        with pytest.raises(ValueError, match="do not add up"):
            step.make_train_step(None, loss, optax.sgd(0.1), accumulate=2)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cross_entropy+dise", {}, "loss 'dise' is unknown.*dice"),
        ("cross_entropy+", {}, "expected different losses joined by"),
        ("dice+dice", {}, "expected different losses"),
        ("-1*dice", {}, "expected different losses"),
        ("cross_entropy+dice", {"gamma": 2.0}, "no option 'gamma'.*label_smoothing.*smooth"),
        ("cross_entropy+dice", {"dice": 2.0}, "no option 'dice'"),
        ("cross_entropy+dice", {"dice": {"gamma": 2.0}}, "loss 'dice' has no option 'gamma'"),
        ("dice", {"axis_name": None, "num_classes": 3, "aux_weight": -1.0}, "aux_weight is -1"),
    ],
)
def test_wrong_names_and_options_are_told(name, options, words):
    with pytest.raises(InputError, match=words):
        losses.build(name, **{"num_classes": 5, "ignore_label": IGNORE, **options})


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("dice", {"classes": (1, 5)}, r"classes is \(1, 5\)"),
        ("dice", {"classes": (1, 1)}, "different ids"),
        ("jaccard", {"class_weights": (1.0,)}, "1 values.*5"),
        ("tversky", {"alpha": -0.1}, "-0.1"),
        ("tversky", {"gamma": 0.0}, "above 0"),
        ("focal", {"alpha": 1.5}, "1.5"),
        ("focal", {"gamma": float("nan")}, "nan"),
        ("cross_entropy", {"top_k": 0.0}, "top_k is 0.0"),
        ("cross_entropy", {"top_k": 20}, "top_k is 20"),
        ("lovasz", {}, "expected .*, 5"),
    ],
)
def test_values_out_of_range_are_told(name, options, words):
    logits, batch = formulas.sample(4 if name == "lovasz" else 5)
    with pytest.raises(ValueError, match=words):
        build(name, **options)({"logits": logits}, batch)


def test_pixels_that_tie_for_the_last_place_share_it():
    """Six equal pixels, half of them wanted: each counts for a half, wherever it stands."""
    logits, label = np.zeros((1, 2, 3, 5), np.float32), np.zeros((1, 2, 3), np.int32)
    loss = build("cross_entropy", top_k=0.5)
    gradient = jax.grad(lambda z: loss({"logits": z}, {"label": label})["cross_entropy"][0])(jnp.asarray(logits))
    expected = (0.2 - np.eye(5)[0]) / 6
    np.testing.assert_allclose(gradient, np.broadcast_to(expected, logits.shape), atol=1e-7)


@pytest.mark.parametrize("pixels, fraction, kept", [(10, 0.3, 3), (10, 0.29, 2), (10, 0.01, 1), (7, 1.0, 7)])
def test_top_k_keeps_the_floor_and_at_least_one(pixels, fraction, kept):
    logits = np.zeros((1, 1, pixels, 2), np.float32)
    logits[0, 0, :, 1] = np.random.default_rng(0).permutation(pixels)  # terms of class 0: all different
    loss = build("cross_entropy", top_k=fraction)
    gradient = jax.grad(
        lambda z: losses.build("cross_entropy", num_classes=2, ignore_label=IGNORE, top_k=fraction)(
            {"logits": z}, {"label": np.zeros((1, 1, pixels), np.int32)}
        )["cross_entropy"][0]
    )(jnp.asarray(logits))
    assert loss.additive is False
    chosen = np.asarray(gradient)[0, 0, :, 1] > 0
    assert chosen.sum() == kept and set(logits[0, 0, chosen, 1]) == set(range(pixels - kept, pixels))


def test_a_counted_nan_is_seen():
    """The step refuses an update whose loss is not finite: no loss may hide what stands under counted pixels."""
    logits, batch = formulas.sample()
    where = tuple(np.argwhere(formulas.counted(batch, 5))[0])
    logits[where] = np.nan
    for name in set(losses.names()) - {"mask_rcnn"}:  # not a loss of pixels
        assert not np.isfinite(list(values(build(name), logits, batch).values())).any(), name
    assert np.isnan(values(build("cross_entropy", top_k=0.1), logits, batch)["cross_entropy"])


def test_lovasz_slopes_survive_many_pixels():
    """Half a million pixels: each slope is about 1e-6, which 1 - I / U taken twice would lose in float32."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((1, 512, 1024, 2)).astype(np.float32)
    label = (rng.random((1, 512, 1024)) < 0.3).astype(np.int32)
    loss = losses.build("lovasz", num_classes=2, ignore_label=IGNORE)
    gradient = jax.jit(jax.grad(lambda z: loss({"logits": z}, {"label": label})["lovasz"][0]))(logits)
    q = formulas.softmax(logits.astype(np.float64)).reshape(-1, 2)
    y, expected = label.ravel(), np.zeros(label.size)
    for c in (0, 1):
        own = (y == c).astype(np.float64)
        order = np.argsort(-np.abs(own - q[:, c]), kind="stable")
        lost = np.cumsum(own[order])
        value = 1 - (own.sum() - lost) / (own.sum() + np.cumsum(1 - own[order]))
        slope = np.empty_like(value)
        slope[order] = np.diff(value, prepend=0.0)
        expected += slope * np.where(y == c, -1, 1) * (1 if c == 1 else -1) * q[:, 0] * q[:, 1] / 2
    mine = np.asarray(gradient)[..., 1].ravel()
    assert np.abs(mine - expected).mean() < 1e-3 * np.abs(expected).mean()
