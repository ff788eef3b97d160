"""Aligned Xception: its block by the paper's figure, and what dilation must leave as it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw

from segjax import backbones
from segjax.backbones import xception

FAST = {"compiler_options": {"xla_backend_optimization_level": 0}}


def conv(x, variables, path, *, stride=1, dilation=1):
    """A convolution and its norm in evaluation, eps 1e-3, by their definitions: lax's, padded by the dilation."""
    params, stats = (functools.reduce(lambda tree, key: tree[key], path, variables[c]) for c in variables)
    kernel = params["conv"]["kernel"]
    pad = dilation * (kernel.shape[0] // 2)
    y = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(pad, pad)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )
    norm, stats = params["norm"], stats["norm"]
    return norm["scale"] * (y - stats["mean"]) / np.sqrt(stats["var"] + 1e-3) + norm["bias"]


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("stride, dilation", [(2, 1), (1, 2)])
def test_block(residual, stride, dilation):
    """Figure 4: three separable convolutions, the last strided, and a strided 1x1 convolution beside them."""
    x = np.random.default_rng(0).normal(size=(2, 9, 12, 5)).astype(np.float32)
    module = xception.Block((6, 7, 8), stride, dilation, shortcut=True, residual=residual)
    variables = draw(jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False)))
    found, inner = jax.jit(functools.partial(module.apply, train=False), **FAST)(variables, x)
    variables = {key: variables[key] for key in ("params", "batch_stats")}
    with jax.numpy_rank_promotion("allow"):
        relu, y = jax.nn.relu, x
        for number in (1, 2, 3):
            y = relu(y) if residual else y
            if number == 3:
                np.testing.assert_allclose(inner, y, rtol=1e-4, atol=1e-5)
            path, last = (f"conv{number}",), stride if number == 3 else 1
            y = conv(y, variables, (*path, "depthwise"), stride=last, dilation=dilation)
            y = conv(y if residual else relu(y), variables, (*path, "pointwise"))
            y = y if residual else relu(y)
        y = y + conv(x, variables, ("shortcut",), stride=stride) if residual else y
    np.testing.assert_allclose(found, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["xception41", "xception71"])
def test_maps(name):
    """The skip of DeepLabv3+ is the map of 256 channels at stride 4, after a ReLU; the last ones have 1024 and 2048."""
    module = backbones.build(name, output_stride=16)
    image = jnp.zeros((1, 32, 32, 3))
    maps = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), image, train=False)[0])
    assert {key: leaf.shape[-1] for key, leaf in maps.items()} == {
        "stride_2": 128, "stride_4": 256, "stride_8": 728, "stride_16": 1024, "out": 2048,
    }  # fmt: skip


def test_dilated_network_is_the_strided_one_at_more_places():
    """Also with the new dilation throughout, for one stage: then it is another network."""
    image = np.random.default_rng(0).normal(size=(1, 43, 58, 3)).astype(np.float32)

    def out(stride, **more):
        module = xception.Xception(xception.ENTRY, middle=1, output_stride=stride, width=0.0625, **more)
        like = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), image)
        maps = jax.jit(functools.partial(module.apply, train=False), **FAST)(draw(like), image)
        assert all(np.all(maps[key] >= 0) and np.any(maps[key]) for key in maps), "every map follows a ReLU"
        return np.asarray(maps["out"])

    fine, coarse = out(8), out(16)
    assert fine.shape[1:3] == (6, 8) and coarse.shape[1:3] == (3, 4)
    scale = np.abs(coarse).max()
    np.testing.assert_allclose(fine[:, ::2, ::2] / scale, coarse / scale, rtol=0, atol=1e-5)
    assert np.abs(out(16, dilate_first_block=True) - coarse).max() / scale > 1e-3
