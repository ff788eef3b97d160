"""VGG and AlexNet: against torchvision's numbers, sizes under each kind of pool, dilation as denser sampling."""

import functools
import re

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw

from segjax import backbones
from segjax.interop import torch as interop
from segjax.types import InputError


def shapes(module, size=(1, 64, 64, 3)):
    return jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), jnp.zeros(size))


def maps(module, size):
    image = jnp.zeros((1, *size, 3))
    features = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), image, train=False)[0])
    return {name: value.shape[1:3] for name, value in features.items()}


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        (
            "vgg16",
            {"pool1": "features.4", "pool2": "features.9", "pool3": "features.16", "pool4": "features.23", "out": ""},
        ),
        ("alexnet", {"out": "features.12"}),
    ],
)
def test_torchvision(golden_dir, name, inner):
    case = golden.Case(golden_dir, f"tv_{name}")
    module = backbones.build(name)
    _, classifier = interop.load(case.state_dict, source="torchvision", model=name)
    variables = {"params": classifier["params"]["backbone"]}
    features = jax.jit(functools.partial(module.apply, train=False))(variables, case.image)
    for key, layer in inner.items():
        case.check_inner(layer or "features.30", features[key])
    case.check("features", features["out"])


@pytest.mark.parametrize(
    ("pool", "size", "expected"),
    [
        ("floor", (97, 131), [(48, 65), (24, 32), (12, 16), (6, 8), (3, 4)]),
        ("ceil", (97, 131), [(49, 66), (25, 33), (13, 17), (7, 9), (4, 5)]),
        ("3x3", (97, 131), [(49, 66), (25, 33), (13, 17), (7, 9), (4, 5)]),
        ("ceil", (1, 6), [(1, 3), (1, 2), (1, 1), (1, 1), (1, 1)]),
    ],
)
def test_sizes(pool, size, expected):
    found = maps(backbones.build("vgg11", width=0.125, pool=pool), size)
    assert [found[f"pool{stage}"] for stage in range(1, 6)] == expected
    assert [found[f"stride_{2**stage}"] for stage in range(5)] == [size, *expected[:4]]
    assert found["out"] == expected[4]


def test_ceil_pool_is_caffe_s():
    """The last window of an odd row holds one pixel; zeros beyond the map are nobody's maximum."""
    module = backbones.build("vgg11", width=0.125, pool="ceil")
    image = np.random.default_rng(0).normal(size=(1, 37, 50, 3)).astype(np.float32)
    features = jax.jit(functools.partial(module.apply, train=False))(draw(shapes(module)), image)
    before = np.asarray(features["stride_1"])
    assert before.shape[1:3] == (37, 50) and (before.max(axis=(1, 2)) > 0).all()
    odd = before[:, 36:].reshape(1, 1, 25, 2, -1).max(axis=3)
    np.testing.assert_array_equal(features["pool1"][:, 18:], odd)


@pytest.mark.parametrize(
    ("name", "options"), [("vgg11_bn", {"pool": "floor"}), ("vgg11", {"pool": "ceil"}), ("alexnet", {})]
)
def test_dilated_network_is_the_strided_one_at_more_places(name, options):
    image = np.random.default_rng(0).normal(size=(1, 125, 97, 3)).astype(np.float32)
    out = {}
    for stride in (8, 16, 32):
        module = backbones.build(name, output_stride=stride, width=0.125, **options)
        forward = jax.jit(functools.partial(module.apply, train=False))
        out[stride] = forward(draw(shapes(module)), image)["out"]
    assert float(jnp.std(out[32])) > 0.01
    for fine, coarse in ((8, 16), (16, 32)):
        np.testing.assert_allclose(out[fine][:, ::2, ::2], out[coarse], rtol=1e-4, atol=1e-5)


def test_dilating_the_first_pool_too_is_another_network():
    image = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    build = functools.partial(backbones.build, "vgg11", output_stride=16, width=0.125, pool="ceil")
    variables = draw(shapes(build()))
    outs = [build(dilate_first_block=first).apply(variables, image, train=False)["out"] for first in (False, True)]
    assert outs[0].shape == outs[1].shape and float(jnp.max(jnp.abs(outs[0] - outs[1]))) > 1e-2


def test_batch_norm_only_where_asked():
    for name, collections in (("vgg11", {"params"}), ("vgg11_bn", {"params", "batch_stats"}), ("alexnet", {"params"})):
        found = shapes(backbones.build(name, width=0.125))
        assert set(found) == collections, name


@pytest.mark.parametrize(("name", "size", "least"), [("vgg11", (31, 64), "32 x 32"), ("alexnet", (64, 62), "63 x 63")])
def test_too_small(name, size, least):
    with pytest.raises(ValueError, match=rf"{re.escape(str(size))}.*at least {least}"):
        maps(backbones.build(name, width=0.125), size)


def test_unknown_pool():
    with pytest.raises(InputError, match=r"pool='round'.*floor, ceil, 3x3"):
        backbones.build("vgg16", pool="round")
