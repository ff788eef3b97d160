"""DeepLab: against torchvision and segmentation_models_pytorch, and the parts that the papers name."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw

from segjax import models, ops
from segjax.interop import torch as interop
from segjax.models._deeplab_heads import LargeFov
from segjax.types import InputError

# The options of our DeepLabv3+ under which it is segmentation_models_pytorch's.
SMP = {
    "aspp_rates": (12, 24, 36),
    "aspp_out_conv": True,
    "decoder_convs": 1,
    "separable": True,
    "depthwise_norm": False,
    "align_corners": True,
    "dilate_first_block": True,
}


def shapes(module, size=(1, 32, 32, 3)):
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(size))


def leaves(params):
    paths = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in paths}


@pytest.mark.parametrize("backbone, classes", [("mobilenet_v2", 1), ("resnet50", 21)])
def test_segmentation_models_pytorch(golden_dir, backbone, classes):
    case = golden.Case(golden_dir, f"smp_deeplabv3plus_{backbone}")
    module, variables = interop.load(case.state_dict, source="smp", model="DeepLabV3Plus", encoder_name=backbone)
    assert module == models.build("deeplab", num_classes=classes, backbone=backbone, output_stride=16, **SMP)

    def keep(module, _):
        return module.name in ("backbone", "aspp", "aspp_out", "low_level", "decoder1", "head")

    @jax.jit
    def forward(variables, image):
        return module.apply(variables, image, capture_intermediates=keep, mutable=["intermediates"])

    outputs, inner = forward(variables, case.image)
    inner = {name: value["__call__"][0] for name, value in inner["intermediates"].items()}
    last = {"mobilenet_v2": "encoder.features.18", "resnet50": "encoder.layer4"}[backbone]
    for name, value in {
        last: inner["backbone"]["out"],
        "decoder.aspp.0": inner["aspp"],
        "decoder.aspp": inner["aspp_out"],
        "decoder.block1": inner["low_level"],
        "decoder.block2": inner["decoder1"],
    }.items():
        case.check_inner(name, value)
    case.check("lowres_out", inner["head"])
    case.check("out", outputs["logits"])


TORCHVISION = {"variant": "v3", "output_stride": 8, "aspp_out_conv": True, "auxiliary": True}


def test_torchvision(golden_dir):
    case = golden.Case(golden_dir, "tv_deeplabv3_resnet50")
    module, variables = interop.load(case.state_dict, source="torchvision", model="deeplabv3_resnet50")
    assert module == models.build("deeplab", num_classes=21, backbone="resnet50", **TORCHVISION)

    def keep(module, _):
        return module.name in ("backbone", "aspp", "head", "aux_head")

    @jax.jit
    def forward(variables, image):
        return module.apply(variables, image, capture_intermediates=keep, mutable=["intermediates"])

    outputs, inner = forward(variables, case.image)
    inner = {name: value["__call__"][0] for name, value in inner["intermediates"].items()}
    case.check_inner("backbone.layer3", inner["backbone"]["stride_8"])
    case.check_inner("backbone.layer4", inner["backbone"]["out"])
    case.check_inner("classifier.0", inner["aspp"])
    case.check("lowres_out", inner["head"])
    case.check("lowres_aux", inner["aux_head"])
    case.check("out", outputs["logits"])
    case.check("aux", outputs["aux_logits"])
    labels = np.argmax(outputs["logits"], axis=-1)
    ties = case.info["outputs"]["labels"]["pixels_with_margin_below_1e-4"]
    assert np.sum(labels != case.stored["labels"]) <= ties


SMP_V3 = {"variant": "v3", "output_stride": 8, "aspp_out_conv": True}
PAPER_V3 = {"variant": "v3", "multi_grid": (1, 2, 4), "dilate_first_block": True}


@pytest.mark.parametrize(
    "options, classes, count",
    [
        # torchvision's documentation
        ({"backbone": "resnet50", **TORCHVISION}, 21, 42_004_074),
        ({"backbone": "resnet101", **TORCHVISION}, 21, 60_996_202),
        # segmentation_models_pytorch: DeepLabV3Plus and DeepLabV3
        ({"backbone": "mobilenet_v2", **SMP}, 1, 4_378_513),
        ({"backbone": "resnet34", **SMP_V3}, 1, 26_007_105),
        ({"backbone": "xception41", **SMP}, 21, 28_095_253),
        # v1, table 2: 20.5 million; VGG-16's 13 convolutions, and (9 512 + 1) 1024 + (1024 + 1) (1024 + 21)
        ({"backbone": "vgg16", "variant": "v1"}, 21, 14_714_688 + 4609 * 1024 + 1025 * 1045),
        # v2, figure 7: four branches of that head; on ResNet-101 four 3x3 convolutions to the scores
        ({"backbone": "vgg16", "variant": "v2"}, 21, 14_714_688 + 4 * (4609 * 1024 + 1025 * 1045)),
        ({"backbone": "resnet101_v1", "variant": "v2"}, 21, 42_500_160 + 4 * (9 * 2048 + 1) * 21),
        # v3: multi-grid has no parameters; each copy of the last stage those of three blocks without a shortcut
        ({"backbone": "resnet101", **PAPER_V3}, 21, 42_500_160 + 15_540_501),
        ({"backbone": "resnet101", "variant": "v3", "cascade": 3}, 21, 42_500_160 + 9 * 4_462_592 + 2049 * 21),
    ],
)
def test_parameter_counts_published(options, classes, count):
    module = models.build("deeplab", num_classes=classes, **options)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(module)["params"])) == count


def test_the_paper_s_parts():
    """Figure 2: five branches of 256, 48 channels of the skip, two 3x3 convolutions of 256, then the classes."""
    module = models.build("deeplab", num_classes=21, backbone="resnet50", separable=False)
    found = leaves(shapes(module)["params"])
    assert found["aspp/point/conv/kernel"] == found["aspp/pool/conv/kernel"] == (1, 1, 2048, 256)
    assert [found[f"aspp/dilated{i}/conv/kernel"] for i in (1, 2, 3)] == 3 * [(3, 3, 2048, 256)]
    assert found["aspp/project/conv/kernel"] == (1, 1, 5 * 256, 256)
    assert found["low_level/conv/kernel"] == (1, 1, 256, 48)
    assert found["decoder1/conv/kernel"] == (3, 3, 304, 256) and found["decoder2/conv/kernel"] == (3, 3, 256, 256)
    assert found["head/kernel"] == (1, 1, 256, 21) and found["head/bias"] == (21,)
    assert not any("decoder3" in name or "aspp_out" in name for name in found)
    assert models.build("deeplab", num_classes=2).decoder_convs == 2


@pytest.mark.parametrize(
    "variant, output_stride, rates",
    [
        ("v3plus", 16, (6, 12, 18)),
        ("v3plus", 8, (12, 24, 36)),
        ("v3", None, (6, 12, 18)),
        ("v2", None, (6, 12, 18, 24)),
        ("v1", None, (12,)),
    ],
)
def test_rates_follow_the_output_stride(variant, output_stride, rates):
    """The reach of the pyramid in pixels of the image is the same at either stride, 96, 192 and 288."""
    options = {"num_classes": 2, "backbone": "resnet18", "output_stride": output_stride, "width": 0.125}
    options["variant"] = variant

    def program(**more):
        module = models.build("deeplab", **options, **more)
        return str(jax.make_jaxpr(module.apply)(shapes(module), jnp.zeros((1, 64, 64, 3))))

    assert program() == program(aspp_rates=rates) != program(aspp_rates=[1, 2, 3])


def test_large_fov_is_the_sum_of_its_branches():
    """Figure 7 of v2: fc6 of rate r, ReLU, fc7, ReLU, scores; here as sums over taps of the padded map, in NumPy."""
    x = np.random.default_rng(0).normal(size=(2, 7, 9, 5)).astype(np.float32)
    module = LargeFov(3, (2, 5), channels=4, dropout=0.5, smooth=False)
    variables = draw(jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False)))
    total = np.zeros((2, 7, 9, 3))
    for number, rate in ((1, 2), (2, 5)):
        fc6, fc7, score = (variables["params"][f"{name}_{number}"] for name in ("fc6", "fc7", "score"))
        padded = np.pad(x, ((0, 0), (rate, rate), (rate, rate), (0, 0)))
        taps = [(i, j, padded[:, i * rate :][:, :7, j * rate :][:, :, :9]) for i in range(3) for j in range(3)]
        y = np.maximum(sum(tap @ fc6["kernel"][i, j] for i, j, tap in taps) + fc6["bias"], 0)
        y = np.maximum(y @ fc7["kernel"][0, 0] + fc7["bias"], 0)
        total += y @ score["kernel"][0, 0] + score["bias"]
    np.testing.assert_allclose(module.apply(variables, x, train=False), total, rtol=1e-4, atol=1e-5)


def test_large_fov_of_v1_on_vgg(monkeypatch):
    """The authors' network: pools of 3x3, the last two without stride, conv5 dilated by 2, an average, fc6 by 12."""
    calls = []

    def record(name, call, x, *args, **more):
        calls.append((name, more["dilation"] if name == "conv" else args[0], more["stride"], x.shape[-1]))
        return call(x, *args, **more)

    for name in ("conv", "max_pool", "avg_pool"):
        monkeypatch.setattr(ops, name, functools.partial(record, name, getattr(ops, name)))
    module = models.build("deeplab", num_classes=21, backbone="vgg16", variant="v1")
    image = jnp.zeros((1, 65, 65, 3))
    outputs = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), image)[0])
    assert outputs["logits"].shape == (1, 65, 65, 21)
    pools = [(window, stride, channels) for name, window, stride, channels in calls if name == "max_pool"]
    assert pools == [(3, 2, 64), (3, 2, 128), (3, 2, 256), (3, 1, 512), (3, 1, 512)]
    assert calls[-4:] == [("avg_pool", 3, 1, 512), ("conv", 12, 1, 512), ("conv", 1, 1, 1024), ("conv", 1, 1, 1024)]
    assert [dilation for name, dilation, _, _ in calls if name == "conv"][:-3] == 10 * [1] + 3 * [2]


def test_cascade_replaces_the_pyramid():
    module = models.build("deeplab", num_classes=2, variant="v3", cascade=2, width=0.125)
    params = shapes(module)["params"]
    assert set(params) == {"backbone", "head"} and "layer6_2" in params["backbone"]


@pytest.mark.parametrize("variant", ["v2", "v3", "v3plus"])
def test_auxiliary_logits(variant):
    """They come of the map before the last stage: changing that stage's weights leaves them as they are."""
    module = models.build("deeplab", num_classes=2, backbone="resnet18", variant=variant, width=0.125, auxiliary=True)
    image = np.random.default_rng(0).normal(size=(1, 33, 41, 3)).astype(np.float32)
    variables = draw(shapes(module))
    forward = jax.jit(module.apply, compiler_options={"xla_backend_optimization_level": 0})
    before = forward(variables, image)
    changed = jax.tree_util.tree_map_with_path(lambda path, x: 2 * x if "layer4_1" in str(path) else x, variables)
    after = forward(changed, image)
    assert before["aux_logits"].shape == before["logits"].shape == (1, 33, 41, 2)
    np.testing.assert_array_equal(before["aux_logits"], after["aux_logits"])
    assert not np.array_equal(before["logits"], after["logits"])


def test_the_pyramid_alone_may_be_plain():
    """segmentation_models_pytorch's decoder_aspp_separable leaves the decoder separable."""
    module = models.build("deeplab", num_classes=2, backbone="resnet18", width=0.125, aspp_separable=False)
    found = leaves(shapes(module)["params"])
    assert "aspp/dilated1/conv/kernel" in found and "decoder1/depthwise/kernel" in found


def test_aligned_corners_keep_their_values():
    """With align_corners the corner pixels' logits are those of the head's corners."""
    module = models.build("deeplab", num_classes=2, backbone="resnet18", width=0.125, align_corners=True)
    image = np.random.default_rng(0).normal(size=(1, 41, 50, 3)).astype(np.float32)
    capture = {"mutable": ["intermediates"], "capture_intermediates": lambda inner, _: inner.name == "head"}
    outputs, inner = jax.jit(functools.partial(module.apply, **capture))(draw(shapes(module)), image)
    (head,) = inner["intermediates"]["head"]["__call__"]
    assert head.shape[1:3] == (11, 13)
    np.testing.assert_allclose(outputs["logits"][:, ::40, ::49], head[:, ::10, ::12], rtol=1e-5, atol=1e-6)


def test_illegal_options():
    build = functools.partial(models.build, "deeplab", num_classes=2)
    with pytest.raises(ValueError, match=r"output_stride=4.*\(16, 8\)"):
        build(output_stride=4)
    with pytest.raises(InputError, match="resnet55.*'resnet50'.*mobilenet_v2"):
        build(backbone="resnet55")
    with pytest.raises(InputError, match="float33"):
        build(dtype="float33")
    with pytest.raises(InputError, match="v4"):
        build(variant="v4")
    with pytest.raises(InputError, match="aspp_dropout=1.0"):
        build(aspp_dropout=1.0)
    with pytest.raises(InputError, match="'decoder_convs'.*its options are"):
        build(decoder_conv=3)
    with pytest.raises(InputError, match=r"fc_channels=-1.*at least 0"):
        build(variant="v1", fc_channels=-1)
    with pytest.raises(InputError, match=r"cascade=1.*expected 0 with variant='v3plus'"):
        build(cascade=1)
    with pytest.raises(InputError, match=r"multi_grid=\(1, 2, 4\).*expected \(\) with backbone='vgg16'"):
        build(backbone="vgg16", multi_grid=(1, 2, 4))
    with pytest.raises(InputError, match=r"multi_grid=\(1, 2\).*3 factors"):
        build(backbone="resnet50", multi_grid=(1, 2))
    with pytest.raises(InputError, match=r"aspp_rates=\(0,\).*at least 1"):
        build(aspp_rates=(0,))
    with pytest.raises(InputError, match="'deeplab'.*known are"):
        models.build("deplab", num_classes=2)
