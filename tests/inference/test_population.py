"""Batch norm's statistics over a whole set, against NumPy over all its values at once."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from segjax import layers, models
from segjax.inference.population import reestimate

COLOURS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


class Net(layers.Network):
    """Norm, dropout, convolution, norm."""

    @nn.compact
    def __call__(self, image, *, train=False, targets=None):
        """Returns {"logits"}."""
        del targets
        x = layers.BatchNorm(name="norm")(image, train=train)
        x = layers.Dropout(0.5)(x, train=train)
        return {"logits": layers.ConvNorm(4, 3, activation=None, name="last")(x, train=train)}


def images(count=11, size=(6, 8)):
    rng = np.random.default_rng(0)
    level = np.linspace(40, 200, count)[:, None, None, None]  # batches that differ much
    return np.clip(level + 30 * rng.standard_normal((count, *size, 3)), 0, 255).astype(np.uint8)


def batches(pictures, rows):
    """In order; the last one is filled up with rows of another colour that are not valid."""
    for start in range(0, len(pictures), rows):
        part = pictures[start : start + rows]
        filled = np.concatenate([part, np.full((rows - len(part), *part.shape[1:]), 7, np.uint8)])
        yield {"image": filled, "valid": np.arange(rows) < len(part)}


def normalised(pictures):
    return (pictures / 255 - np.array(COLOURS["mean"])) / np.array(COLOURS["std"])


def test_the_first_norm_gets_the_moments_of_all_values():
    pictures, net = images(), Net()
    variables = net.init(jax.random.key(0), jnp.zeros((1, 6, 8, 3)))
    values = normalised(pictures).reshape(-1, 3)
    for rows in (1, 4, 11):
        found = reestimate(net, variables, batches(pictures, rows), **COLOURS)["batch_stats"]
        np.testing.assert_allclose(found["norm"]["mean"], values.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(found["norm"]["var"], values.var(axis=0), rtol=1e-5)
        assert jax.tree.structure(found) == jax.tree.structure(variables["batch_stats"])


def test_later_norms_see_batches_normalised_by_themselves_without_dropout():
    pictures, net = images(8), Net()
    variables = net.init(jax.random.key(0), jnp.zeros((1, 6, 8, 3)))
    found = reestimate(net, variables, batches(pictures, 4), **COLOURS)["batch_stats"]["last"]["norm"]
    kernel = variables["params"]["last"]["conv"]["kernel"]
    inputs = []
    for part in (normalised(pictures[:4]), normalised(pictures[4:])):
        x = (part - part.mean(axis=(0, 1, 2))) / np.sqrt(part.var(axis=(0, 1, 2)) + 1e-5)
        x = jax.lax.conv_general_dilated(
            jnp.asarray(x, jnp.float32), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        inputs.append(np.asarray(x, np.float64).reshape(-1, 4))
    values = np.concatenate(inputs)
    np.testing.assert_allclose(found["mean"], values.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(found["var"], values.var(axis=0), rtol=1e-4)


def test_devices_change_nothing():
    pictures, net = images(), Net()
    variables = net.init(jax.random.key(0), jnp.zeros((1, 6, 8, 3)))
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    one, many = (reestimate(net, variables, batches(pictures, 4), mesh=m, **COLOURS) for m in (None, mesh))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_one_batch_of_the_set_gives_what_training_mode_gives():
    """With the moments of exactly this batch, evaluation normalises as the batch's own statistics do."""
    pictures, net = images(6), Net()
    variables = net.init(jax.random.key(0), jnp.zeros((1, 6, 8, 3)))
    estimated = reestimate(net, variables, batches(pictures, 6), **COLOURS)
    x = jnp.asarray(normalised(pictures), jnp.float32)
    by_batch, _ = models.apply_batch_norm(net, variables, x)
    np.testing.assert_allclose(net.apply(estimated, x)["logits"], by_batch["logits"], atol=1e-4)


def test_every_norm_of_a_shipped_model_is_estimated():
    net = models.build("deeplab", num_classes=3, width=0.25, aspp_channels=8, decoder_channels=8, low_level_channels=4)
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: net.init(jax.random.key(0), x), image)
    _, moments = jax.eval_shape(functools.partial(models.apply_batch_norm, net), variables, image)
    assert jax.tree.structure(moments) == jax.tree.structure(variables["batch_stats"])


def test_no_image_is_an_error():
    with pytest.raises(ValueError, match="no image"):
        reestimate(Net(), {"params": {}, "batch_stats": {}}, [], **COLOURS)
