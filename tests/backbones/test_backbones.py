"""Every backbone: against torchvision's numbers and counts, and against the mathematics of dilation."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw

from segjax import backbones
from segjax.interop import torch as interop
from segjax.types import InputError

# Parameters of torchvision 0.2x's models (its documentation), and those of the classifier that ours lack.
COUNTS = {
    "resnet18": 11_689_512 - 1000 * 513,
    "resnet34": 21_797_672 - 1000 * 513,
    "resnet50": 25_557_032 - 1000 * 2049,
    "resnet101": 44_549_160 - 1000 * 2049,
    "resnet152": 60_192_808 - 1000 * 2049,
    "resnet50_v1": 25_557_032 - 1000 * 2049,
    "resnet101_v1": 44_549_160 - 1000 * 2049,
    "resnet152_v1": 60_192_808 - 1000 * 2049,
    "mobilenet_v2": 3_504_872 - 1000 * 1281,
    "alexnet": 61_100_840 - 58_631_144,
    "vgg11": 132_863_336 - 123_642_856,
    "vgg11_bn": 132_868_840 - 123_642_856,
    "vgg13": 133_047_848 - 123_642_856,
    "vgg13_bn": 133_053_736 - 123_642_856,
    "vgg16": 138_357_544 - 123_642_856,
    "vgg16_bn": 138_365_992 - 123_642_856,
    "vgg19": 143_667_240 - 123_642_856,
    "vgg19_bn": 143_678_248 - 123_642_856,
    "xception41": 26_969_560 - 1000 * 2049,  # timm's three
    "xception65": 39_916_312 - 1000 * 2049,
    "xception71": 42_338_736 - 1000 * 2049,
    "xception71_identity": 42_338_736 - 1000 * 2049,
}
FEWER = {("xception71_identity", 8): 728 * 730}  # a shortcut's convolution and norm


def shapes(module, size=(1, 64, 64, 3)):
    return jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), jnp.zeros(size))


def test_every_backbone_has_a_count():
    assert set(backbones.known()) == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count(name):
    for output_stride in (8, 32):
        params = shapes(backbones.build(name, output_stride=output_stride))["params"]
        expected = COUNTS[name] - FEWER.get((name, output_stride), 0)
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "xception41", "xception71"])
@pytest.mark.parametrize("output_stride, size", [(8, (65, 97)), (16, (64, 31)), (32, (65, 97)), (32, (3, 1))])
def test_strides(name, output_stride, size):
    module = backbones.build(name, output_stride=output_stride)
    image = jnp.zeros((1, *size, 3))
    features = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), image, train=False)[0])
    strides = {f"stride_{s}": s for s in (2, 4, 8, 16) if s <= output_stride} | {"out": output_stride}
    assert set(features) == set(strides)
    for key, stride in strides.items():
        assert features[key].shape[1:3] == tuple(-(-n // stride) for n in size), key


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_dilated_network_is_the_strided_one_at_more_places(name):
    """At stride 8 the last map, taken at every second (fourth) pixel, is that at stride 16 (32): section 3.1 of v3."""
    image = np.random.default_rng(0).normal(size=(1, 75, 58, 3)).astype(np.float32)
    out = {}
    for stride in (8, 16, 32):
        module = backbones.build(name, output_stride=stride, width=0.25)
        variables = draw(shapes(module))
        out[stride] = jax.jit(lambda v, m=module: m.apply(v, image, train=False)["out"])(variables)
        assert out[stride].shape[1:3] == (-(-75 // stride), -(-58 // stride))
    assert float(jnp.std(out[32])) > 0.01
    for fine, coarse in ((8, 16), (16, 32)):
        scale = float(jnp.max(jnp.abs(out[coarse])))
        np.testing.assert_allclose(out[fine][:, ::2, ::2] / scale, out[coarse] / scale, rtol=0, atol=1e-5)


def test_dilating_the_first_block_too_is_another_network():
    image = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    outs = []
    for dilate_first_block in (False, True):
        module = backbones.build("resnet18", output_stride=16, width=0.25, dilate_first_block=dilate_first_block)
        outs.append(module.apply(draw(shapes(module)), image, train=False)["out"])
    assert float(jnp.max(jnp.abs(outs[0] - outs[1]))) > 1e-2


@pytest.mark.parametrize(
    "strides, output_stride, first, expected",
    [
        # torchvision's replace_stride_with_dilation=[False, True, True] and segmentation_models_pytorch's rule
        ((4, 2, 2, 2), 8, False, [(4, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)]),
        ((4, 2, 2, 2), 8, True, [(4, 1, 1), (2, 1, 1), (1, 2, 2), (1, 4, 4)]),
        ((4, 2, 2, 2), 16, False, [(4, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 2)]),
        ((4, 2, 2, 2), 32, True, [(4, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]),
        ((2, 2, 1, 2, 1), 4, False, [(2, 1, 1), (2, 1, 1), (1, 1, 1), (1, 1, 2), (1, 2, 2)]),
    ],
)
def test_geometry(strides, output_stride, first, expected):
    assert backbones.geometry(strides, output_stride, first) == expected


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_torchvision(golden_dir, name):
    case = golden.Case(golden_dir, f"tv_{name}")
    module = backbones.build(name)
    _, classifier = interop.load(case.state_dict, source="torchvision", model=name)
    variables = {collection: parts["backbone"] for collection, parts in classifier.items()}
    features = jax.jit(functools.partial(module.apply, train=False))(variables, case.image)
    resnet, mobilenet = {4: "layer1", 8: "layer2", 16: "layer3"}, {4: "features.3", 8: "features.6", 16: "features.13"}
    for stride, layer in (mobilenet if name == "mobilenet_v2" else resnet).items():
        case.check_inner(layer, features[f"stride_{stride}"])
    case.check("features", features["out"])


def test_unknown():
    with pytest.raises(InputError, match="'resnet50'.*known are"):
        backbones.build("resnet55")
    with pytest.raises(InputError, match="'width'.*its options are"):
        backbones.build("resnet50", widht=2)
    with pytest.raises(InputError, match="8, 16 or 32"):
        backbones.build("resnet50", output_stride=4)
