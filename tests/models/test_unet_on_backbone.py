"""What segmentation_models_pytorch's Unet has on demand: attention, fewer blocks, a head for the whole image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw

from segjax import models
from segjax.models import unet
from segjax.models._image_head import ImageHead
from segjax.types import InputError

pytestmark = pytest.mark.slow


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_attention_by_its_definition():
    x, module = noise(2, 5, 4, 32), unet.Attention()
    variables = draw(jax.eval_shape(module.init, jax.random.key(0), x))

    def dense(name, x):
        layer = variables["params"][name]
        return x @ np.asarray(layer["kernel"])[0, 0] + np.asarray(layer["bias"])

    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    channels = sigmoid(dense("expand", np.maximum(dense("reduce", x.mean((1, 2), keepdims=True)), 0)))
    expected = x * channels + x * sigmoid(dense("pixel", x))
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_image_head_by_its_definition(pooling):
    x, module = noise(2, 5, 4, 8), ImageHead(3, pooling)
    variables = draw(jax.eval_shape(lambda key: module.init(key, x, train=False), jax.random.key(0)))
    kernel, bias = (np.asarray(variables["params"]["score"][name]) for name in ("kernel", "bias"))
    pooled = x.mean((1, 2)) if pooling == "avg" else x.max((1, 2))
    np.testing.assert_allclose(
        module.apply(variables, x, train=False), pooled @ kernel[0, 0] + bias, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("blocks, unused", [(4, {"layer4"}), (3, {"layer3", "layer4"})])
def test_fewer_blocks_leave_the_last_stages_alone(blocks, unused):
    options = {"backbone": "resnet18", "width": 0.125, "decoder_channels": (8,) * blocks, "image_classes": 2}
    module = models.build("unet", num_classes=2, variant="backbone", interpolation="bilinear", **options)
    image = noise(1, 50, 61, 3)
    variables = draw(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(image.shape)))

    def total(params):
        outputs = module.apply({**variables, "params": params}, image)
        assert outputs["logits"].shape == (1, 50, 61, 2) and outputs["image_logits"].shape == (1, 2)
        return outputs["logits"].sum()

    gradient = jax.jit(jax.grad(total), compiler_options={"xla_backend_optimization_level": 0})
    found = gradient(variables["params"])["backbone"]
    still = {name.partition("_")[0] for name, tree in found.items() if not any(map(np.any, jax.tree.leaves(tree)))}
    assert still == unused


def test_illegal_options():
    for options, message in (
        ({"decoder_channels": (8, 8)}, r"decoder_channels=\(8, 8\).*five \(or four, or three\)"),
        ({"decoder_channels": (32, 32, 8), "attention": "scse"}, r"decoder_channels=\(32, 32, 8\).*at least 16"),
        ({"attention": "se"}, "attention='se'.*'scse'"),
        ({"interpolation": "area"}, "interpolation='area'.*'nearest-exact'"),
        ({"decoder_norm": "layer"}, "decoder_norm='layer'.*'none'"),
        ({"image_pooling": "sum"}, "image_pooling='sum'.*'max'"),
    ):
        with pytest.raises(InputError, match=message):
            models.build("unet", num_classes=2, variant="backbone", **options)
