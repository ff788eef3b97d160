"""The patch classifier: one window a pixel, the same logits in one pass, training on sampled pixels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw

from segjax import losses, models, ops
from segjax.models import patch
from segjax.types import InputError

SMALL = {"num_classes": 3, "channels": (4, 6), "kernels": (4, 3), "last": 3, "hidden": 8}
SIDE = 19  # ((19 - 3) / 2 - 2) / 2 = 3
build = functools.partial(models.build, "patch")


def compiled(function):
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shapes(**options):
    return jax.eval_shape(build(**options).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def classify(params, window):
    """The textbook's classifier, f32[SIDE, SIDE, 3] to scores f32[3]: convolve, pool, flatten, multiply."""
    x = window[None]
    for name in ("stage1", "stage2"):
        leaves = params[name]["conv"]
        x = ops.max_pool(np.maximum(np.asarray(ops.conv(x, leaves["kernel"])) + leaves["bias"], 0), 2)
    assert x.shape == (1, 3, 3, 6)
    hidden = np.ravel(x) @ params["hidden"]["conv"]["kernel"].reshape(-1, 8) + params["hidden"]["conv"]["bias"]
    return np.maximum(hidden, 0) @ params["score"]["kernel"][0, 0] + params["score"]["bias"]


@pytest.mark.parametrize(
    ("kernels", "last", "side"), [((4, 5, 4, 4), 3, 95), ((4, 3), 3, SIDE), ((), 5, 5), ((2,), 1, 3)]
)
def test_window(kernels, last, side):
    assert patch.window(kernels, last) == side
    for taps in kernels:
        assert (side - taps + 1) % 2 == 0
        side = (side - taps + 1) // 2
    assert side == last


@pytest.mark.parametrize("form", ["patches", "dense"])
def test_a_pixel_s_logits_are_its_window_s(form):
    """The window lies centred on the pixel, the image mirrored beyond its border."""
    options = {**SMALL, "norm": False}
    variables, image = draw(shapes(**options)), noise(1, 8, 11, 3)
    logits = compiled(build(**options, form=form).apply)(variables, image)["logits"]
    padded = np.pad(image[0], ((9, 9), (9, 9), (0, 0)), mode="reflect")
    for row, column in ((0, 0), (3, 4), (7, 10), (0, 10)):
        expected = classify(variables["params"]["classifier"], padded[row : row + SIDE, column : column + SIDE])
        np.testing.assert_allclose(logits[0, row, column], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(9, 14), (1, 1), (2, 5)])
@pytest.mark.parametrize("options", [SMALL, {**SMALL, "kernels": (3, 4), "last": 2}], ids=["odd window", "even window"])
def test_dense_is_the_classification_of_every_pixel(size, options):
    """One pass with dilated layers equals one window at a time, with batch norm too, at every pixel."""
    image, variables = noise(2, *size, 3), draw(shapes(**options))
    dense, patches = (compiled(build(**options, form=form).apply)(variables, image) for form in ("dense", "patches"))
    assert dense["logits"].shape == (2, *size, 3) and np.abs(dense["logits"]).max() > 0.1
    np.testing.assert_allclose(dense["logits"], patches["logits"], rtol=1e-5, atol=1e-6)


def test_dense_at_every_fourth_pixel_is_the_strided_network():
    """Two pools by 2: run with strides over the mirrored image, the classifier gives every fourth pixel."""
    image, variables = noise(1, 13, 18, 3), draw(shapes(**SMALL))
    dense = compiled(build(**SMALL).apply)(variables, image)["logits"]
    options = {"norm": True, "dropout": 0.5}
    strided = patch.Classifier(form="patches", **SMALL, **options)
    inner = {collection: tree["classifier"] for collection, tree in variables.items()}
    mirrored = np.pad(image, ((0, 0), (9, 9), (9, 9), (0, 0)), mode="reflect")
    coarse = compiled(functools.partial(strided.apply, train=False))(inner, mirrored)
    np.testing.assert_allclose(dense[:, ::4, ::4], coarse, rtol=1e-5, atol=1e-6)


def test_every_form_has_the_same_parameters():
    expected = shapes(**SMALL)
    for form in patch.LEGAL["form"]:
        assert shapes(**SMALL, form=form) == expected


def test_parameters_of_the_paper_s_network():
    """N4: 16 * 48 + 48, 25 * 48^2 + 48, twice 16 * 48^2 + 48, 9 * 48 * 200 + 200, 200 * 2 + 2."""
    module = build(num_classes=2, norm=False)
    found = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    assert set(found) == {"params"} and sum(leaf.size for leaf in jax.tree.leaves(found)) == 219_290


def test_full_resolution_sees_less():
    """Without pools a logit depends on 1 + 3 + 2 + 2 pixels a side, not on 19; the size is the image's."""
    image = noise(1, 31, 31, 3)
    changed = np.array(image)
    changed[0, 15, 15] += 1
    variables = draw(shapes(**SMALL))
    for form, reach in (("full_resolution", 8), ("dense", SIDE)):
        apply = compiled(build(**SMALL, form=form).apply)
        moved = np.any(apply(variables, image)["logits"] != apply(variables, changed)["logits"], axis=(0, 3))
        assert moved.shape == (31, 31) and moved.any()
        rows, columns = np.flatnonzero(moved.any(axis=1)), np.flatnonzero(moved.any(axis=0))
        # A maximum may hide the outermost pixels of a view, but shows none from outside.
        assert reach // 2 < np.ptp(rows) + 1 <= reach and reach // 2 < np.ptp(columns) + 1 <= reach


def sampled_label(height, width, count):
    """A label of which ``count`` pixels of each of two images are known."""
    rng, label = np.random.default_rng(0), np.full((2, height * width), 255, np.int32)
    for row in label:
        row[rng.choice(height * width, count, replace=False)] = rng.integers(0, 3, count)
    return label.reshape(2, height, width)


def test_training_on_sampled_pixels():
    """The loss and its gradients are those of training on every window with all other labels ignored."""
    options = {**SMALL, "norm": False, "dropout": 0.0}
    variables, image, label = draw(shapes(**options)), noise(2, 9, 11, 3), sampled_label(9, 11, 6)
    loss = losses.build("cross_entropy", num_classes=3, ignore_label=255)

    def objective(params, module):
        outputs, _ = module.apply({"params": params}, image, train=True, targets={"label": label})
        (total, weight), *others = loss(outputs, {"label": label}).values()
        assert not others
        return total / weight, outputs["logits"]

    def run(**more):
        gradient = jax.value_and_grad(functools.partial(objective, module=build(**options, **more)), has_aux=True)
        return compiled(gradient)(variables["params"])

    (value, logits), gradients = run(form="patches", samples=8)
    assert int(np.isnan(logits).any(axis=-1).sum()) == 2 * (9 * 11 - 8)
    assert not np.isnan(np.asarray(logits)[label != 255]).any()
    for other in ({"form": "patches"}, {"form": "dense"}, {"form": "dense", "samples": 6}):
        (expected, _), expected_gradients = run(**other)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradients, expected_gradients)
    (too_few, _), _ = run(form="patches", samples=5)
    assert np.isnan(too_few)


def test_sampled_windows_set_the_statistics():
    """Batch norm and dropout see the sampled windows; without targets, or to evaluate, every pixel is classified."""
    module, image, label = build(**SMALL, form="patches", samples=4), noise(2, 7, 6, 3), sampled_label(7, 6, 4)
    variables, key = draw(shapes(**SMALL)), jax.random.key(0)
    apply = functools.partial(module.apply, train=True)
    outputs, stats = compiled(apply)(variables, image, targets={"label": label}, key=key)
    _, everywhere = compiled(apply)(variables, image, key=key)
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"]) == jax.tree.structure(everywhere)
    assert not np.allclose(
        stats["classifier"]["stage1"]["norm"]["mean"], everywhere["classifier"]["stage1"]["norm"]["mean"]
    )
    assert np.isfinite(np.asarray(outputs["logits"])[label != 255]).all()
    assert np.isfinite(compiled(module.apply)(variables, image)["logits"]).all()


@pytest.mark.parametrize(
    "options, message",
    [({"form": "sliding"}, "form='sliding'.*'patches'"), ({"form": "full_resolution", "samples": 9}, "samples=9"),
     ({"kernels": (4,)}, r"channels=\(4, 6\) and kernels=\(4,\)"), ({"last": 0}, "last=0"), ({"hidden": 0}, "hidden=0"),
     ({"dropout": 1.0}, "dropout=1.0"), ({"dtype": "half"}, "dtype='half'"), ({"num_classes": 0}, "num_classes=0")],
)  # fmt: skip
def test_illegal_options(options, message):
    with pytest.raises(InputError, match=message):
        build(**{**SMALL, **options})
