"""Parameters of every published model that can be loaded, as torchvision, timm and segmentation_models_pytorch have it.

Counted by PyTorch: 1000 classes of the classifiers, 21 of the segmentation models. Those of the papers that no library
has (FCN on VGG-16, SegNet, DeconvNet, U-Net, DeepLab v1 and v2) are in the tables of the models' own tests.
"""

import jax
import jax.numpy as jnp
import pytest

from segjax import models

CLASSIFIERS = {
    "alexnet": 61_100_840,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "mobilenet_v2": 3_504_872,
    "xception41": 26_969_560,
    "xception65": 39_916_312,
    "xception71": 42_338_736,
}
TORCHVISION = {  # with the auxiliary head, and without
    ("fcn", "resnet50"): (35_322_218, 32_957_013),
    ("fcn", "resnet101"): (54_314_346, 51_949_141),
    ("deeplab", "resnet50"): (42_004_074, 39_638_869),
    ("deeplab", "resnet101"): (60_996_202, 58_630_997),
}
UNETS = {
    "resnet18": 14_331_109,
    "resnet34": 24_439_269,
    "resnet50": 32_524_005,
    "resnet101": 51_516_133,
    "resnet152": 67_159_781,
    "mobilenet_v2": 6_631_845,
    "xception41": 34_203_797,
    "xception65": 47_150_549,
    "xception71": 49_572_973,
    "vgg11": 18_256_933,
    "vgg11_bn": 18_262_437,
    "vgg13": 18_441_445,
    "vgg13_bn": 18_447_333,
    "vgg16": 23_751_141,
    "vgg16_bn": 23_759_589,
    "vgg19": 29_060_837,
    "vgg19_bn": 29_071_845,
}
DEEPLABS = {  # DeepLabV3, DeepLabV3Plus
    "resnet18": (15_904_085, 12_334_437),
    "resnet34": (26_012_245, 22_442_597),
    "resnet50": (39_638_869, 26_682_725),
    "resnet101": (58_630_997, 45_674_853),
    "resnet152": (74_274_645, 61_318_501),
    "mobilenet_v2": (12_653_077, 4_383_653),
    "xception41": (41_051_397, 28_095_253),
    "xception65": (53_998_149, 41_042_005),
    # timm leaves a shortcut of 728 to 728 channels out, 728^2 + 2 * 728, where DeepLabV3's stride of 8 has taken its
    # block's stride; in "xception71" it stays, as in the authors' code.
    "xception71_identity": (55_889_133, 43_464_429),
    "xception71": (55_889_133 + 728 * 730, 43_464_429),
}
QUICK = {"alexnet", "vgg11_bn", "resnet18", "mobilenet_v2"}  # the others take seconds each, and are slow


def rows(table):
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in table]


def count(model, classes, **options):
    module = models.build(model, num_classes=classes, **options)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize("backbone", rows(CLASSIFIERS))
def test_classifiers(backbone):
    assert count("classifier", 1000, backbone=backbone) == CLASSIFIERS[backbone]


@pytest.mark.slow
@pytest.mark.parametrize("model, backbone", TORCHVISION)
def test_torchvision_s_segmentation(model, backbone):
    own = {"fcn": {"variant": "dilated"}, "deeplab": {"variant": "v3", "output_stride": 8, "aspp_out_conv": True}}
    options = {"backbone": backbone, **own[model]}
    assert count(model, 21, auxiliary=True, **options) == TORCHVISION[model, backbone][0]
    assert count(model, 21, **options) == TORCHVISION[model, backbone][1]


@pytest.mark.parametrize("backbone", rows(UNETS))
def test_unets(backbone):
    center = backbone.startswith("vgg")
    assert count("unet", 21, variant="backbone", backbone=backbone, center=center) == UNETS[backbone]


@pytest.mark.parametrize("backbone", rows(DEEPLABS))
def test_deeplabs(backbone):
    smp = {"backbone": backbone, "aspp_out_conv": True, "depthwise_norm": False}
    v3, plus = DEEPLABS[backbone]
    assert count("deeplab", 21, variant="v3", output_stride=8, **smp) == v3
    assert count("deeplab", 21, variant="v3plus", decoder_convs=1, **smp) == plus
