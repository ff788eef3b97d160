"""DeepLabv3+: against segmentation_models_pytorch, and the parts the paper names."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw

from segjax import models
from segjax.types import InputError


def shapes(module, size=(1, 32, 32, 3)):
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(size))


def leaves(params):
    paths = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in paths}


@pytest.mark.parametrize("backbone, classes", [("mobilenet_v2", 1), ("resnet50", 21)])
def test_segmentation_models_pytorch(golden_dir, backbone, classes):
    case = golden.Case(golden_dir, f"smp_deeplabv3plus_{backbone}")
    module = models.build("deeplab", num_classes=classes, backbone=backbone, output_stride=16, **golden.SMP_OPTIONS)
    rename = golden.renamer(backbone, "encoder.", golden.SMP_DEEPLABV3PLUS, "backbone/")
    variables = golden.convert(case.state_dict, rename, shapes(module))

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


def test_parameter_counts_published():
    """segmentation_models_pytorch's DeepLabV3Plus, mobilenet_v2, one class: 4.38 million."""
    module = models.build("deeplab", num_classes=1, backbone="mobilenet_v2", **golden.SMP_OPTIONS)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(module)["params"])) == 4_378_513


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


@pytest.mark.parametrize("output_stride, rates", [(16, (6, 12, 18)), (8, (12, 24, 36))])
def test_rates_follow_the_output_stride(output_stride, rates):
    """The reach of the pyramid in pixels of the image is the same at either stride, 96, 192 and 288."""
    options = {"num_classes": 2, "backbone": "resnet18", "output_stride": output_stride, "width": 0.125}

    def program(**more):
        module = models.build("deeplab", **options, **more)
        return str(jax.make_jaxpr(module.apply)(shapes(module), jnp.zeros((1, 64, 64, 3))))

    assert program() == program(aspp_rates=rates) != program(aspp_rates=[1, 2, 3])


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
    with pytest.raises(InputError, match="'deeplab'.*known are"):
        models.build("deplab", num_classes=2)
