"""Classifiers: counts of the published ones, the places of dropout, any image size, training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw

from segjax import models
from segjax.types import InputError

# Parameters with 1000 classes, as torchvision's documentation states them.
COUNTS = {
    "alexnet": 61_100_840,
    "vgg11": 132_863_336,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "mobilenet_v2": 3_504_872,
}

FAST = {"xla_backend_optimization_level": 0}  # to compile


def shapes(module, size=(1, 64, 64, 3)):
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(size))


@pytest.mark.parametrize("backbone", COUNTS)
def test_parameter_count(backbone):
    module = models.build("classifier", num_classes=1000, backbone=backbone)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(module)["params"])) == COUNTS[backbone]


@pytest.mark.parametrize("backbone", ["resnet18", "vgg11", "alexnet", "mobilenet_v2"])
@pytest.mark.parametrize("size", [(64, 64), (97, 130)])
def test_logits_of_any_size_and_number_of_channels(backbone, size):
    module = models.build("classifier", num_classes=5, backbone=backbone, width=0.125, dtype="bfloat16")
    image = jnp.zeros((2, *size, 4))
    logits = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), image)[0])["logits"]
    assert logits.shape == (2, 5) and logits.dtype == jnp.float32


@pytest.mark.parametrize(
    "backbone, dropped",
    [("resnet18", set()), ("mobilenet_v2", {"head"}), ("vgg11", {"fc7", "head"}), ("alexnet", {"fc6", "fc7"})],
)
def test_places_of_dropout(backbone, dropped):
    """The layers whose input draws, and that nothing else does: torchvision's places."""
    module = models.build("classifier", num_classes=2, backbone=backbone, width=0.125, dropout=0.5 if dropped else 0)
    variables = draw(shapes(module))
    image = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    keep = {"capture_intermediates": lambda inner, _: "dropout" in (inner.name or ""), "mutable": ["intermediates"]}
    _, found = jax.eval_shape(lambda v, x: module.apply(v, x, **keep), variables, image)
    assert {
        name.removesuffix("_dropout") for name in found.get("intermediates", {}) if "fc" in name or "head" in name
    } == (dropped if backbone != "resnet18" else {"head"})
    if dropped:
        with pytest.raises(ValueError, match="draws random numbers"):
            jax.eval_shape(lambda v, x: module.apply(v, x, train=True), variables, image)
    train = jax.jit(lambda v, x, key: module.apply(v, x, train=True, key=key)[0]["logits"], compiler_options=FAST)
    one, two = (train(variables, image, jax.random.key(n)) for n in (0, 1))
    assert np.array_equal(one, two) == (not dropped)


def test_sliding_is_the_mean_of_what_every_window_gives():
    """timm's VGG on a map of 8 x 9: fc6 has 2 x 3 places; without sliding it has one, on the map averaged to 7 x 7."""
    options = {"backbone": "vgg11", "width": 1 / 32, "sliding": True}
    module = models.build("classifier", num_classes=3, **options)
    variables = draw(shapes(module))
    image = np.random.default_rng(0).normal(size=(1, 256, 300, 3)).astype(np.float32)
    run = lambda m: jax.jit(m.apply, compiler_options={"xla_backend_optimization_level": 0})(variables, image)
    x = np.asarray(run(models.build("classifier", num_classes=0, **options | {"sliding": False, "maps": True}))["out"])
    assert x.shape[1:3] == (8, 9)
    dense = {name: (np.asarray(p["kernel"]), np.asarray(p["bias"])) for name, p in variables["params"].items()
             if name != "backbone"}  # fmt: skip
    features = []
    for row, column in np.ndindex(2, 3):
        hidden = np.einsum("hwc,hwcf->f", x[0, row : row + 7, column : column + 7], dense["fc6"][0]) + dense["fc6"][1]
        features.append(np.maximum(np.maximum(hidden, 0) @ dense["fc7"][0][0, 0] + dense["fc7"][1], 0))
    feature = np.mean(features, axis=0)
    expected = feature @ dense["head"][0][0, 0] + dense["head"][1]
    np.testing.assert_allclose(run(module)["logits"][0], expected, rtol=1e-4, atol=1e-6)
    found = run(models.build("classifier", num_classes=0, **options))["features"]
    np.testing.assert_allclose(found[0], feature, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2", "vgg11"])
def test_maps_are_the_backbone_s(backbone):
    module = models.build("classifier", num_classes=0, backbone=backbone, width=0.125, maps=True)
    image = jax.ShapeDtypeStruct((2, 65, 70, 3), np.float32)
    found = jax.eval_shape(module.apply, shapes(module), image)
    first = 1 if backbone == "vgg11" else 2
    assert set(found) == {"out", *(f"stride_{s}" for s in (1, 2, 4, 8, 16) if s >= first)}
    assert all(x.shape[0] == 2 and x.ndim == 4 for x in found.values())
    assert "head" not in shapes(module)["params"]["backbone"]


def test_gradients_reach_every_parameter():
    module = models.build("classifier", num_classes=3, backbone="vgg11", width=0.0625)
    variables = draw(shapes(module))
    image = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    weights = np.float32([[1, -2, 3], [0.5, 1, -1]])
    loss = lambda params: (weights * module.apply({"params": params}, image)["logits"]).sum()
    gradients = jax.jit(jax.grad(loss), compiler_options=FAST)(variables["params"])
    assert all(np.all(np.isfinite(leaf)) and np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_illegal_options():
    for options, message in (
        ({"backbone": "resnet19"}, "no backbone 'resnet19'"),
        ({"dropout": 1.0}, "dropout=1.0 .*0 <= rate < 1"),
        ({"width": 0}, "width=0 .*above 0"),
        ({"dtype": "half"}, "dtype='half'"),
    ):
        with pytest.raises(InputError, match=message):
            models.build("classifier", num_classes=2, **options)
    with pytest.raises(InputError, match="num_classes=-1"):
        models.build("classifier", num_classes=-1)
