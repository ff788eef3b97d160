"""Layers against their formulas, and against themselves on another number of devices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax import layers, ops
from segjax.types import InputError

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def on_devices(count, module, variables, x, **call):
    """Returns the module's output under jit over a mesh and under pmap, each with the batch split in ``count``."""

    def apply(module, variables, x):
        return module.apply(variables, x, train=True, mutable=["batch_stats"], **call)

    mesh = Mesh(np.array(jax.devices()[:count]), ("data",))
    split, copied = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    under_jit = jax.jit(functools.partial(apply, module), in_shardings=(copied, split))(variables, x)
    mapped = functools.partial(apply, module.clone(axis_name="data"))
    mapped = jax.pmap(mapped, "data", in_axes=(None, 0), out_axes=(0, None), devices=jax.devices()[:count])
    y, stats = mapped(variables, x.reshape(count, -1, *x.shape[1:]))
    return under_jit, (y.reshape(x.shape), stats)


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (1, 3)])
def test_conv_pads_to_the_ceiling(size, stride, dilation):
    module = layers.Conv(6, size, stride, dilation, bias=True)
    x = normal(2, 9, 8, 4)
    y, variables = module.init_with_output(jax.random.key(0), x)
    assert y.shape == (2, -(-9 // stride), -(-8 // stride), 6)
    params = variables["params"]
    assert params["kernel"].shape == (size, size, 4, 6) and not np.any(params["bias"])
    padding = dilation * (size // 2)
    expected = ops.conv(x, params["kernel"], stride=stride, padding=padding, dilation=dilation) + 5.0
    y = module.apply({"params": {**params, "bias": jnp.full(6, 5.0)}}, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_conv_takes_a_padding():
    x = normal(1, 9, 8, 4)
    y, variables = layers.Conv(6, 3, padding="valid").init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(y, ops.conv(x, variables["params"]["kernel"]), atol=1e-5)
    assert y.shape == (1, 7, 6, 6)


def test_conv_transpose_is_the_operation_with_its_kernel():
    y = normal(2, 5, 6, 4)
    module = layers.ConvTranspose(6, 3, 2, padding=1, output_padding=1, groups=2, bias=True)
    x, variables = module.init_with_output(jax.random.key(0), y)
    params = variables["params"]
    assert x.shape == (2, 10, 12, 6) and params["kernel"].shape == (3, 3, 3, 4)
    expected = ops.conv_transpose(y, params["kernel"], stride=2, padding=1, output_padding=1, groups=2) + 5.0
    x = module.apply({"params": {**params, "bias": jnp.full(6, 5.0)}}, y)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5)
    sized = layers.ConvTranspose(6, 4, 2, padding=1)
    assert sized.init_with_output(jax.random.key(0), y, output_size=(11, 12))[0].shape == (2, 11, 12, 6)


def test_conv_transpose_keeps_the_variance():
    """He's rule: normal values through a ReLU and the layer have variance 1 again."""
    y = np.maximum(normal(4, 16, 16, 64), 0)
    for size, stride in ((2, 2), (4, 2), (3, 1)):
        x, _ = layers.ConvTranspose(64, size, stride).init_with_output(jax.random.key(1), y)
        inside = x[:, 4:-4, 4:-4]
        assert 0.85 < float(jnp.mean(inside**2)) < 1.15


def test_conv_transpose_starts_bilinear():
    y = normal(1, 5, 6, 3)
    x, _ = layers.ConvTranspose(3, 4, 2, padding=1, bilinear=True).init_with_output(jax.random.key(0), y)
    expected = ops.resize(y, (10, 12), method="bilinear")
    np.testing.assert_allclose(x[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-5)
    with pytest.raises(ValueError, match="3 channels in and features=4"):
        layers.ConvTranspose(4, 4, 2, bilinear=True).init(jax.random.key(0), y)
    with pytest.raises(ValueError, match="4 input and 3 output channels: expected a divisor"):
        layers.ConvTranspose(3, groups=2).init(jax.random.key(0), normal(1, 5, 6, 4))
    with pytest.raises(ValueError, match="size=2 without padding"):
        layers.Conv(3, 2).init(jax.random.key(0), normal(1, 5, 6, 4))


def test_separable_and_atrous_convolutions_are_the_operations():
    x = normal(2, 9, 8, 4)
    module = layers.SeparableConvNorm(6, 3, dilation=2, depthwise_norm=False)
    y, variables = module.init_with_output(jax.random.key(0), x, train=False)
    params = variables["params"]
    z = ops.conv(x, params["depthwise"]["kernel"], padding=2, dilation=2, groups=4)
    z = ops.conv(z, params["pointwise"]["conv"]["kernel"]) / np.float32(1 + 1e-5) ** 0.5  # batch norm at its start
    np.testing.assert_allclose(y, jax.nn.relu(z), atol=1e-5)
    y, variables = layers.Conv(5, 3, dilation=3).init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(y, ops.conv(x, variables["params"]["kernel"], padding=3, dilation=3), atol=1e-5)


def test_kernels_are_drawn_as_torchvision_draws_them():
    """Normal with variance 2 / (kh kw Cout), for depthwise kernels too."""
    for groups, channels in ((1, 64), (64, 64)):
        module = layers.Conv(channels, 3, groups=groups)
        kernel = module.init(jax.random.key(1), normal(1, 4, 4, 64))["params"]["kernel"]
        assert kernel.shape == (3, 3, 64 // groups, channels) and kernel.dtype == jnp.float32
        expected = (2 / (9 * channels)) ** 0.5
        assert abs(float(jnp.std(kernel)) / expected - 1) < 3 / (2 * kernel.size) ** 0.5
        assert abs(float(jnp.mean(kernel))) < 4 * expected / kernel.size**0.5


def test_batch_norm_formula():
    x = 3 + 2 * normal(4, 5, 6, 7)
    module = layers.BatchNorm(momentum=0.8, epsilon=1e-3)
    params = {"scale": normal(7), "bias": normal(7)}
    stats = {"mean": normal(7), "var": np.abs(normal(7))}
    y, new = module.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
    flat = x.reshape(-1, 7).astype(np.float64)
    expected = (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-3) * params["scale"] + params["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    mean = 0.8 * stats["mean"] + 0.2 * flat.mean(0)
    np.testing.assert_allclose(new["batch_stats"]["mean"], mean, rtol=1e-5, atol=1e-6)
    unbiased = 0.8 * stats["var"] + 0.2 * flat.var(0, ddof=1)
    np.testing.assert_allclose(new["batch_stats"]["var"], unbiased, rtol=1e-5)

    y = module.apply({"params": params, "batch_stats": stats}, x, train=False)
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-3) * params["scale"] + params["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_batch_norm_of_one_value_per_channel():
    """The running statistics serve, and stay: image pooling can be trained at batch size 1."""
    module, x = layers.BatchNorm(), normal(1, 1, 1, 4)
    variables = {
        "params": {"scale": normal(4), "bias": normal(4)},
        "batch_stats": {"mean": normal(4), "var": np.abs(normal(4))},
    }
    y, new = module.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, module.apply(variables, x, train=False))
    jax.tree.map(np.testing.assert_array_equal, new["batch_stats"], variables["batch_stats"])
    gradient = jax.grad(lambda x: module.apply(variables, x, train=True, mutable=["batch_stats"])[0].sum())(x)
    assert np.all(np.isfinite(gradient)) and np.all(gradient != 0)


@pytest.mark.parametrize("devices", [2, 8])
def test_batch_norm_sees_the_global_batch(devices):
    x = np.arange(8, dtype=np.float32).reshape(8, 1, 1, 1) + normal(8, 3, 2, 5)
    module = layers.BatchNorm()
    variables = module.init(jax.random.key(0), x, train=False)
    expected = module.apply(variables, x, train=True, mutable=["batch_stats"])
    for found in on_devices(devices, module, variables, x):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected)


def test_batch_norm_in_bfloat16_keeps_float32_statistics():
    x = jnp.asarray(100 + normal(4, 8, 8, 3), jnp.bfloat16)
    module = layers.BatchNorm(momentum=0.0)
    variables = module.init(jax.random.key(0), x, train=False)
    y, new = module.apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, new))} == {jnp.dtype("float32")}
    mean = np.asarray(x, np.float64).mean((0, 1, 2))
    np.testing.assert_allclose(new["batch_stats"]["mean"], mean, rtol=1e-6)


def test_dropout_keeps_the_mean():
    x = jnp.ones((4, 50, 50, 3))
    y = np.asarray(layers.Dropout(0.3).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)}))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1) / np.float32(1 - 0.3)}
    assert abs(y.mean() - 1) < 4 * (0.3 / 0.7 / y.size) ** 0.5
    assert not np.array_equal(y[0], y[1])
    np.testing.assert_array_equal(layers.Dropout(0.3).apply({}, x, train=False), x)
    np.testing.assert_array_equal(layers.Dropout(0.0).apply({}, x, train=True), x)
    with pytest.raises(ValueError, match="key=KEY"):
        layers.Dropout(0.3).apply({}, x, train=True)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_dropout_draws_by_global_example(devices):
    x, rngs = normal(8, 3, 2, 5), {"dropout": jax.random.key(7)}
    module = layers.Dropout(0.5)
    expected = module.apply({}, x, train=True, rngs=rngs)
    for y, _ in on_devices(devices, module, {}, x, rngs=rngs):
        np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(module.apply({}, x[:3], train=True, rngs=rngs), expected[:3])


def test_separable_convolution_is_a_low_rank_one():
    """Without a norm between: the convolution with kernel[u, v, i, o] = depthwise[u, v, i] pointwise[i, o]."""
    x, module = normal(2, 9, 11, 6), layers.SeparableConvNorm(5, dilation=2, depthwise_norm=False)
    variables = module.init(jax.random.key(0), x, train=False)
    params = variables["params"]
    depthwise, pointwise = params["depthwise"]["kernel"], params["pointwise"]["conv"]["kernel"]
    kernel = depthwise[:, :, 0, :, None] * pointwise[0, 0][None, None]
    expected = jax.nn.relu(ops.conv(x, kernel, padding=2, dilation=2) / (1 + 1e-5) ** 0.5)
    np.testing.assert_allclose(module.apply(variables, x, train=False), expected, rtol=1e-4, atol=1e-5)
    with_norm = layers.SeparableConvNorm(5).init(jax.random.key(0), x, train=False)["params"]
    assert set(with_norm) == {"depthwise", "depthwise_norm", "pointwise"}


def test_from_options():
    module = layers.from_options(layers.Conv, "a conv", {"features": 3, "size": 1, "name": "x"})
    assert (module.features, module.name) == (3, "x")
    with pytest.raises(InputError, match=r"a conv: no option 'featurs' \(did you mean 'features'\?\); its options are"):
        layers.from_options(layers.Conv, "a conv", {"featurs": 3})
    with pytest.raises(InputError, match="no option 'parent'"):
        layers.from_options(layers.Conv, "a conv", {"features": 3, "parent": None})


class Tiny(layers.Network):
    """The smallest network with everything: kernel, norm, dropout, targets."""

    rate: float = 0.5

    @nn.compact
    def __call__(self, image, *, train=False, targets=None):
        x = layers.ConvNorm(4, 3, name="conv")(image, train=train)
        x = layers.Dropout(self.rate)(x, train=train)
        return {"logits": x if targets is None else x + targets["shift"]}


def test_network_is_a_pure_function():
    module, image, key = Tiny(), normal(2, 5, 4, 3), jax.random.key(3)
    variables = module.init(jax.random.key(0), image)
    assert set(variables) == {"params", "batch_stats"}
    before = jax.tree.map(np.array, variables)
    evaluated = module.apply(variables, image)["logits"]
    np.testing.assert_array_equal(evaluated, module.apply(variables, image, train=False, key=key)["logits"])
    outputs, stats = module.apply(variables, image, train=True, key=key)
    again, _ = jax.jit(functools.partial(module.apply, train=True))(variables, image, key=key)
    np.testing.assert_allclose(outputs["logits"], again["logits"], rtol=1e-5, atol=1e-6)
    other, _ = module.apply(variables, image, train=True, key=jax.random.key(4))
    assert not np.array_equal(outputs["logits"] == 0, other["logits"] == 0)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])
    assert all(jax.tree.leaves(jax.tree.map(lambda new, old: np.any(new != old), stats, variables["batch_stats"])))
    shifted = module.apply(variables, image, targets={"shift": jnp.float32(2)})["logits"]
    np.testing.assert_allclose(shifted, evaluated + 2)
    with pytest.raises(ValueError, match="key=KEY"):
        module.apply(variables, image, train=True)
    Tiny(rate=0.0).apply(variables, image, train=True)  # nothing random: no key is needed


class Deep(layers.Network):
    """Three kernels of one shape, one of them of another deviation."""

    @nn.compact
    def __call__(self, x, *, train=False, targets=None):
        x = layers.Conv(64, 3, name="a")(layers.Conv(64, 3, name="b")(x))
        return {"logits": layers.Conv(64, 3, deviation=0.5, bias=True, name="c")(x)}


def test_init_draws_every_kernel_by_its_own_rule():
    module, image = Deep(), normal(1, 8, 8, 64)
    params = module.init(jax.random.key(0), image)["params"]
    kernels = {name: np.asarray(params[name]["kernel"]) for name in "abc"}
    for name, deviation in (("a", (2 / (9 * 64)) ** 0.5), ("b", (2 / (9 * 64)) ** 0.5), ("c", 0.5)):
        assert abs(kernels[name].std() / deviation - 1) < 3 / (2 * kernels[name].size) ** 0.5
    for one, other in (("a", "b"), ("b", "c")):
        correlation = np.corrcoef(kernels[one].ravel(), kernels[other].ravel())[0, 1]
        assert abs(correlation) < 4 / kernels[one].size ** 0.5
    assert not np.any(params["c"]["bias"])
    jax.tree.map(np.testing.assert_array_equal, params, module.init(jax.random.key(0), normal(2, 5, 6, 64))["params"])
    assert np.all(module.init(jax.random.key(1), image)["params"]["a"]["kernel"] != kernels["a"])


def test_network_is_a_plain_linen_module_too():
    module, image, key = Tiny(), normal(2, 5, 4, 3), jax.random.key(3)
    variables = module.init({"params": jax.random.key(0)}, image)
    assert jax.eval_shape(module.init, jax.random.key(0), image) == jax.eval_shape(lambda: variables)
    rngs = {"dropout": key}
    outputs, updates = module.apply(variables, image, train=True, mutable=["batch_stats"], rngs=rngs)
    mine, stats = module.apply(variables, image, train=True, key=key)
    np.testing.assert_array_equal(outputs["logits"], mine["logits"])
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], stats)
    _, inner = module.apply(variables, image, mutable=["intermediates"], capture_intermediates=True)
    assert inner["intermediates"]["conv"]["__call__"][0].shape == (2, 5, 4, 4)
    doubled = module.apply(variables, image, method=lambda module, x: 2 * module(x)["logits"])
    np.testing.assert_array_equal(doubled, 2 * module.apply(variables, image)["logits"])
