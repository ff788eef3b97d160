"""What holds for every loss: its formula, ignored pixels to the bit, many devices as one, what adds up, the peers."""

import ast
import json
import re

import formulas
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import IGNORE

from segjax import losses

WEIGHTS = (0.5, 2.0, 1.0, 0.0, 3.0)
CASES = [
    ("cross_entropy", {}),
    ("cross_entropy", {"class_weights": WEIGHTS, "label_smoothing": 0.1}),
    ("cross_entropy", {"top_k": 0.25}),
    ("cross_entropy", {"top_k": 0.5, "class_weights": WEIGHTS, "label_smoothing": 0.1}),
    ("dice", {}),
    ("dice", {"smooth": 1.0, "class_weights": WEIGHTS}),
    ("dice", {"log_loss": True, "classes": (1, 3)}),
    ("jaccard", {}),
    ("jaccard", {"smooth": 1.0, "classes": (4, 0)}),
    ("jaccard", {"log_loss": True}),
    ("tversky", {"alpha": 0.3, "beta": 0.7, "gamma": 0.75}),
    ("focal", {}),
    ("focal", {"alpha": 0.25, "gamma": 3.0, "class_weights": WEIGHTS}),
    ("focal", {"normalized": True, "gamma": 1.0}),
    ("lovasz", {}),
    ("lovasz", {"per_image": True}),
]
ADDITIVE = [case for case in CASES if case[0] in ("cross_entropy", "focal") or "per_image" in case[1]]
ADDITIVE = [case for case in ADDITIVE if not {"top_k", "normalized"} & set(case[1])]
every = pytest.mark.parametrize("name, options", CASES, ids=lambda x: x if isinstance(x, str) else "-".join(x))


def build(name, options, num_classes=5, **more):
    return losses.build(name, num_classes=num_classes, ignore_label=IGNORE, **options, **more)


def mean(terms):
    """One division after all sums, as the step does it."""
    (total, weight), *others = terms.values()
    assert not others
    return total / jnp.where(weight > 0, weight, 1.0)


def value_and_gradient(loss, logits, batch):
    return jax.jit(jax.value_and_grad(lambda z: mean(loss({"logits": z}, batch))))(jnp.asarray(logits))


@every
@pytest.mark.parametrize("weighted", [False, True])
def test_value_is_the_formula_and_gradient_its_difference_quotient(name, options, weighted):
    logits, batch = formulas.sample(absent=(2,))
    if not weighted:
        del batch["weight"]

    def exact(z):
        return getattr(formulas, name)(z, batch, **options)

    value, gradient = value_and_gradient(build(name, options), logits, batch)
    np.testing.assert_allclose(value, exact(logits), rtol=2e-5)
    direction = np.random.default_rng(1).standard_normal(logits.shape)
    step = 1e-6  # short, so that no two errors change places
    quotient = (exact(logits + step * direction) - exact(logits - step * direction)) / (2 * step)
    np.testing.assert_allclose((np.asarray(gradient, np.float64) * direction).sum(), quotient, rtol=2e-4)


@every
def test_what_stands_under_ignored_pixels_changes_no_bit(name, options):
    logits, batch = formulas.sample(rows=3)
    batch["label"][0, 0, :3] = [-1, 5, 200]  # outside [0, K), not the ignore label
    batch["valid"][1] = False
    ignored = ~formulas.counted(batch, 5)
    assert 20 < ignored.sum() < 90
    loss = build(name, options)
    run = jax.jit(jax.value_and_grad(lambda z: (lambda t: (mean(t), t))(loss({"logits": z}, batch)), has_aux=True))
    expected = run(logits)
    for bad in (7.0, 1e30, -np.inf, np.nan):
        changed = run(np.where(ignored[..., None], np.float32(bad), logits))
        for mine, theirs in zip(jax.tree.leaves(changed), jax.tree.leaves(expected), strict=True):
            assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()
    assert np.isfinite(expected[1]).all() and not np.asarray(expected[1])[ignored].any()


@every
def test_nothing_counted_is_zero_with_weight_zero_and_a_zero_gradient(name, options):
    logits, batch = formulas.sample()
    batch["label"] = np.full_like(batch["label"], IGNORE)
    loss = build(name, options)
    terms = loss({"logits": logits}, batch)
    assert [float(x) for x in jax.tree.leaves(terms)] == [0.0, 0.0]
    assert not np.asarray(value_and_gradient(loss, logits, batch)[1]).any()


@every
def test_many_devices_equal_one(name, options):
    """By the step's rule: sums and weights added over the devices, then divided; one device holds nothing at all."""
    devices = 8 if name in ("lovasz", "cross_entropy") else 4
    logits, batch = formulas.sample(rows=8, absent=(2,))
    batch["label"][:1] = IGNORE
    batch["label"][1, :3] = IGNORE
    expected, gradient = value_and_gradient(build(name, options), logits, batch)
    loss = build(name, options, axis_name="data")

    def share(z, part):
        ((total, weight),) = loss({"logits": z}, part).values()
        weight = jax.lax.psum(jax.lax.stop_gradient(weight), "data")
        return total / jnp.where(weight > 0, weight, 1.0)

    def step(z, part):
        value, gradient = jax.value_and_grad(share)(z, part)
        return jax.lax.psum(value, "data"), gradient

    split = jax.tree.map(lambda x: x.reshape(devices, 8 // devices, *x.shape[1:]), (logits, batch))
    values, gradients = jax.pmap(step, "data", devices=jax.devices()[:devices])(*split)
    np.testing.assert_allclose(values, np.full(devices, expected), rtol=2e-6)
    np.testing.assert_allclose(np.asarray(gradients).reshape(gradient.shape), gradient, rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize("name, options", [case for case in CASES if "top_k" not in case[1]])
def test_whole_weights_are_repeated_pixels(name, options):
    """Where the weight is a whole number the loss is that of an image in which the pixel stands that often."""
    logits, batch = formulas.sample(rows=1)
    times = np.random.default_rng(3).integers(0, 4, batch["label"].shape)
    repeated = {"label": np.repeat(batch["label"].ravel(), times.ravel())[None, None]}
    many = np.repeat(logits.reshape(-1, 5), times.ravel(), axis=0)[None, None]
    loss = build(name, options)
    weighted = mean(loss({"logits": logits}, {**batch, "weight": times.astype(np.float32)}))
    np.testing.assert_allclose(weighted, mean(loss({"logits": many}, repeated)), rtol=1e-5)


@pytest.mark.parametrize("name, options", ADDITIVE)
def test_parts_of_a_batch_add_up(name, options):
    logits, batch = formulas.sample(rows=4)
    loss = build(name, options)
    assert loss.additive
    (whole,) = loss({"logits": logits}, batch).values()
    parts = [
        next(iter(loss({"logits": logits[i::2]}, {k: v[i::2] for k, v in batch.items()}).values())) for i in (0, 1)
    ]
    np.testing.assert_allclose(whole, np.sum(parts, axis=0), rtol=2e-6)


@pytest.mark.parametrize("name, options", [case for case in CASES if case not in ADDITIVE])
def test_the_others_say_that_they_do_not(name, options):
    assert not build(name, options).additive


def test_every_loss_is_here():
    assert {name for name, _ in CASES} == set(losses.names()) - {"mask_rcnn"}  # not a loss of pixels
    for name, options in CASES:
        assert set(options) <= set(losses.options_of(name))


def golden(loss):
    """(name, options, whether the sum is wanted) of a case such as "smp.losses.DiceLoss('multiclass', smooth=1.0)"."""
    call = ast.parse(loss, mode="eval").body
    options = {k.arg: "weight" if isinstance(k.value, ast.Name) else ast.literal_eval(k.value) for k in call.keywords}
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", call.func.attr.removesuffix("Loss")).lower()
    return name, options, options.pop("reduction", "mean"), options.pop("ignore_index", -100)


def test_against_the_libraries(golden_dir):
    """Every value and every gradient of the file within its tolerance."""
    described = json.loads((golden_dir / "dev/losses.json").read_text())
    stored = np.load(golden_dir / "dev/losses.npz")
    logits = jnp.asarray(stored["logits"].transpose(0, 2, 3, 1))
    assert len(described["cases"]) == 48
    for case in described["cases"]:
        name, options, reduction, ignore = golden(case["loss"])
        if options.pop("weight", None):
            options["class_weights"] = tuple(stored["weight"].tolist())
        loss = losses.build(name, num_classes=5, ignore_label=ignore, **options)
        batch = {"label": stored[case["target"]].astype(np.int32)}

        def value(z, loss=loss, batch=batch, divide=reduction == "mean"):
            terms = loss({"logits": z}, batch)
            return mean(terms) if divide else next(iter(terms.values()))[0]

        mine, gradient = jax.value_and_grad(value)(logits)
        if case["value"] is not None:  # None: per pixel, or NaN where everything is ignored
            atol = case["outputs"]["value"]["atol"]
            np.testing.assert_allclose(mine, case["value"], rtol=1e-5, atol=atol, err_msg=case["loss"])
        np.testing.assert_allclose(
            np.asarray(gradient).transpose(0, 3, 1, 2), np.nan_to_num(stored[case["name"] + "/gradient"]),
            rtol=1e-5, atol=case["outputs"]["gradient"]["atol"], err_msg=f"{case['loss']} {case['target']}",
        )  # fmt: skip
