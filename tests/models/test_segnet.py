"""SegNet, SegNet-Basic and DeconvNet: the networks in NumPy, their gradients by differences, sizes and counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw

from segjax import models
from segjax.models import segnet
from segjax.types import InputError

VARIANTS = ("segnet", "basic", "deconvnet")


def shapes(module, size=(1, 32, 32, 3)):
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(size))


def image_of(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class InNumpy:
    """The three networks, written out in float64 for one image [H, W, C]."""

    def __init__(self, variables):
        self.params, self.stats = (jax.tree.map(np.float64, variables[name]) for name in ("params", "batch_stats"))

    def norm(self, x, *path):
        p, s = (functools.reduce(dict.__getitem__, path, tree) for tree in (self.params, self.stats))
        return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    def layer(self, x, name, relu=True):
        """Convolution, or in DeconvNet's decoder transposed convolution, norm and perhaps ReLU."""
        kernel, bias = self.params[name]["conv"]["kernel"], self.params[name]["conv"]["bias"]
        transposed = "bottleneck" in self.params and name.startswith("decoder")
        x = transposed_conv(x, kernel)[1:-1, 1:-1] if transposed else conv(x, kernel, len(kernel) // 2)
        x = self.norm(x + bias, name, "norm")
        return np.maximum(x, 0) if relu else x

    def bottleneck(self, x):
        p, size = self.params["bottleneck"], x.shape[:2]
        x = np.pad(x, [(0, max(0, 7 - n)) for n in size] + [(0, 0)])
        x = np.maximum(self.norm(conv(x, p["fc6"]["kernel"], 0) + p["fc6"]["bias"], "bottleneck", "fc6_norm"), 0)
        x = np.maximum(self.norm(x @ p["fc7"]["kernel"][0, 0] + p["fc7"]["bias"], "bottleneck", "fc7_norm"), 0)
        x = transposed_conv(x, p["deconv"]["kernel"]) + p["deconv"]["bias"]
        return np.maximum(self.norm(x, "bottleneck", "deconv_norm"), 0)[: size[0], : size[1]]

    def __call__(self, x):
        x, names = np.float64(x), sorted(name for name in self.params if name.startswith(("encoder", "decoder")))
        basic = "encoder5_1" not in names
        if basic:
            x = response_norm(x)
        switches, stages = [], range(1, 5 if basic else 6)
        for stage in stages:
            for name in [name for name in names if name.startswith(f"encoder{stage}")]:
                x = self.layer(x, name)
            size = x.shape
            x, places = pool(x)
            switches.append((places, size))
        if "bottleneck" in self.params:
            x = self.bottleneck(x)
        for stage in reversed(stages):
            (places, size), small = switches.pop(), x
            x = np.zeros(size[:2] + small.shape[2:])
            for i, j, c in np.ndindex(small.shape):
                x[(*places[i, j, c], c)] = small[i, j, c]
            for name in [name for name in names if name.startswith(f"decoder{stage}")]:
                x = self.layer(x, name, relu=not basic)
        head = self.params["head"]
        return conv(x, head["kernel"], len(head["kernel"]) // 2) + head["bias"]


def conv(x, kernel, padding):
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(0, 1))
    return np.einsum("hwcuv,uvck->hwk", windows, kernel)


def transposed_conv(x, kernel):
    """Each pixel stamps the kernel, of [k, k, features, Cin]."""
    k = len(kernel)
    y = np.zeros((x.shape[0] + k - 1, x.shape[1] + k - 1, kernel.shape[2]))
    for i, j in np.ndindex(x.shape[:2]):
        y[i : i + k, j : j + k] += np.einsum("uvfc,c->uvf", kernel, x[i, j])
    return y


def pool(x):
    """Maxima of 2x2 cells (narrower at the end of an odd size), and the pixel of each: the first in row order."""
    height, width, channels = x.shape
    y = np.empty((-(-height // 2), -(-width // 2), channels))
    places = np.empty((*y.shape, 2), int)
    for i, j, c in np.ndindex(y.shape):
        cell = x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        row, column = np.unravel_index(cell.argmax(), cell.shape)
        y[i, j, c], places[i, j, c] = cell[row, column], (2 * i + row, 2 * j + column)
    return y, places


def response_norm(x, alpha=1e-4, beta=0.75):
    y = np.empty_like(x)
    for c in range(x.shape[-1]):
        total = (x[..., max(0, c - 2) : c + 3] ** 2).sum(axis=-1)
        y[..., c] = x[..., c] / (1 + alpha / 5 * total) ** beta
    return y


@functools.cache
def tiny(variant):
    """Few channels, four classes; the gain is such that the image still matters at the far end."""
    module = models.build("segnet", num_classes=4, variant=variant, width=1 / 32, bottleneck=5)
    return module, draw(shapes(module), gain=1.8)


@pytest.mark.parametrize("size", [(11, 9), (16, 1), (36, 34)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_network_in_numpy(variant, size):
    """Odd sizes at every stage, an axis of one pixel; the bottleneck's map below 7x7."""
    module, variables = tiny(variant)
    image = image_of(1, *size, 3)
    logits = jax.jit(module.apply)(variables, image)["logits"][0]
    expected = InNumpy(variables)(image[0])
    assert logits.shape == expected.shape == (*size, 4)
    assert np.abs(expected - InNumpy(variables)(-image[0])).std() > 0.5 * expected.std()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * expected.std())


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_through_the_switches(variant):
    """The gradient of the image against differences of the network in NumPy, along a few directions."""
    module, variables = tiny(variant)
    image, weights = image_of(1, 12, 9, 3), image_of(1, 12, 9, 4, seed=1)
    objective = lambda image: jnp.sum(weights * module.apply(variables, image)["logits"])
    gradient = np.asarray(jax.jit(jax.grad(objective))(image), np.float64)[0]
    network = InNumpy(variables)
    value = lambda image: np.sum(weights[0] * network(image))
    for seed in range(3):
        direction, step = image_of(12, 9, 3, seed=2 + seed).astype(np.float64), 1e-7
        slope = (value(image[0] + step * direction) - value(image[0] - step * direction)) / (2 * step)
        assert abs(slope) > 1
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-3)


def test_bottleneck_of_large_images():
    """The classifier's image, 224x224, gives fc6 one pixel; larger images more, and the map comes back whole."""
    module, variables = models.build("segnet", num_classes=2, variant="deconvnet", width=1 / 32, bottleneck=5), {}
    variables = shapes(module)

    def maps(size):
        keep = {"mutable": ["intermediates"], "capture_intermediates": True}
        image = jnp.zeros((1, *size, 3))
        inner = jax.eval_shape(functools.partial(module.apply, **keep), variables, image)[1]["intermediates"]
        fc6, whole = inner["bottleneck"]["fc6"]["__call__"][0], inner["bottleneck"]["__call__"][0]
        return fc6.shape[1:3], whole.shape[1:3]

    assert maps((224, 224)) == ((1, 1), (7, 7))
    assert maps((193, 40)) == ((1, 1), (7, 2))
    assert maps((360, 480)) == ((6, 9), (12, 15))


def test_sizes_of_the_paper_s_images():
    """CamVid's 360x480: the pools round up, as the prototxt's upsample_h: 23 and 45 say."""
    module, image = models.build("segnet", num_classes=11, width=1 / 64), jnp.zeros((1, 360, 480, 3))
    keep = {"mutable": ["intermediates"], "capture_intermediates": True}
    inner = jax.eval_shape(functools.partial(module.apply, **keep), shapes(module), image)[1]["intermediates"]
    sizes = [(360, 480), (180, 240), (90, 120), (45, 60), (23, 30)]
    for name in ("encoder{}_1", "decoder{}_1"):
        assert [inner[name.format(stage)]["__call__"][0].shape[1:3] for stage in range(1, 6)] == sizes


@pytest.mark.parametrize("variant, published", [("segnet", 29.5e6), ("basic", 1.4e6), ("deconvnet", 252e6)])
def test_parameter_counts(variant, published):
    """Eleven classes; kernels, biases and two numbers of batch norm per channel, summed up by the papers' tables."""
    conv = lambda i, o, k: k * k * i * o + o
    vgg = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    back = [512, 512, 512, 512, 512, 256, 256, 256, 128, 128, 64, 64]
    if variant == "basic":
        channels, count = [3] + [64] * 8, 0
        count += sum(conv(i, o, 7) + 2 * o for i, o in zip(channels[:-1], channels[1:], strict=True)) + conv(64, 11, 1)
    elif variant == "segnet":
        channels = [3, *vgg, *back]
        count = sum(conv(i, o, 3) + 2 * o for i, o in zip(channels[:-1], channels[1:], strict=True)) + conv(64, 11, 3)
    else:
        channels = [3, *vgg, *back, 64]
        count = sum(conv(i, o, 3) + 2 * o for i, o in zip(channels[:-1], channels[1:], strict=True)) + conv(64, 11, 1)
        count += conv(512, 4096, 7) + conv(4096, 4096, 1) + conv(4096, 512, 7) + 2 * (4096 + 4096 + 512)
    module = models.build("segnet", num_classes=11, variant=variant)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(module)["params"])) == count
    assert abs(count - published) / published < 0.02


def test_the_prototxt_s_layers():
    """SegNet's batch norms follow 25 of 26 convolutions; Basic's decoder is linear, its classifier 1x1."""
    found = shapes(models.build("segnet", num_classes=11))["params"]
    kernels = [path for path, _ in jax.tree_util.tree_leaves_with_path(found) if path[-1].key == "kernel"]
    scales = [path for path, _ in jax.tree_util.tree_leaves_with_path(found) if path[-1].key == "scale"]
    assert (len(kernels), len(scales)) == (26, 25)
    assert found["head"]["kernel"].shape == (3, 3, 64, 11)
    found = shapes(models.build("segnet", num_classes=11, variant="basic"))["params"]
    assert found["encoder4_1"]["conv"]["kernel"].shape == found["decoder1_1"]["conv"]["kernel"].shape == (7, 7, 64, 64)
    assert found["head"]["kernel"].shape == (1, 1, 64, 11)


@pytest.mark.parametrize("channels", [1, 3, 8])
def test_local_response_norm(channels):
    x = 100 * image_of(2, 3, 4, channels)
    expected = response_norm(np.float64(x))
    np.testing.assert_allclose(segnet.local_response_norm(x), expected, rtol=1e-5)
    assert segnet.local_response_norm(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16
    assert np.abs(expected / x).min() < 0.95


def test_illegal_options():
    build = functools.partial(models.build, "segnet", num_classes=2)
    with pytest.raises(InputError, match=r"variant='unet'.*'deconvnet'"):
        build(variant="unet")
    with pytest.raises(InputError, match="width=0.*above 0"):
        build(width=0)
    with pytest.raises(InputError, match="bottleneck=0.*at least 1"):
        build(bottleneck=0)
    with pytest.raises(InputError, match="float16"):
        build(dtype="float16")
