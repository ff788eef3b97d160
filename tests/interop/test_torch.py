"""Loading torch tensors: layouts by their definitions, every mistake told with the tensor's name, the way back."""

import functools
import json
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw

from segjax import models, ops
from segjax.interop import classifiers
from segjax.interop import torch as interop
from segjax.interop.tensors import Tensor, tensors, under
from segjax.types import InputError


def variables_of(module, channels=3):
    return draw(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, channels))))


@functools.cache
def resnet18(classes=4, channels=3):
    """A classifier of ours and its torch state dict."""
    module = models.build("classifier", num_classes=classes, backbone="resnet18")
    variables = variables_of(module, channels)
    return module, variables, interop.to_torch(module, variables, source="torchvision", model="resnet18")


def load(state_dict, **options):
    return interop.load(state_dict, **{"source": "torchvision", "model": "resnet18", **options})


def refused(message, state_dict, **options):
    with pytest.raises(InputError, match=message):
        load(state_dict, **options)


def one(shape, size, rules, path="params/m/kernel"):
    like = {"params": {"m": {"kernel": np.zeros(size)}}}
    (tensor,) = tensors(like, rules).values()
    assert (tensor.shape, tensor.path) == (shape, path)
    return tensor


def test_linear_is_a_1x1_convolution():
    weight, x = np.random.default_rng(0).normal(size=(5, 7)), np.arange(7.0)
    kernel = one((5, 7), (1, 1, 7, 5), (("m", "fc", "linear"),)).ours(weight)
    y = ops.conv(x.reshape(1, 1, 1, 7).astype(np.float32), kernel)
    np.testing.assert_allclose(y.ravel(), weight @ x, rtol=1e-5)


def test_linear_after_flattening_channels_first():
    """torch flattens [C, h, w]; the kernel is [h, w, C, out]."""
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(5, 3 * 2 * 2)), rng.normal(size=(3, 2, 2))
    kernel = one((5, 12), (2, 2, 3, 5), (("m", "fc", "linear"),)).ours(weight)
    y = ops.conv(x.transpose(1, 2, 0)[None].astype(np.float32), kernel)
    np.testing.assert_allclose(y.ravel(), weight @ x.ravel(), rtol=1e-4)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolution_by_its_definition(groups):
    """y[o] = sum over the group's channels i and places of w[o, i, p, q] x[i, p, q], at the one place there is."""
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(4, 4 // groups, 3, 2)), rng.normal(size=(4, 3, 2))
    kernel = one(weight.shape, (3, 2, 4 // groups, 4), (("m", "conv"),)).ours(weight)
    y = ops.conv(x.transpose(1, 2, 0)[None].astype(np.float32), kernel, groups=groups)
    split = x.reshape(groups, 1, 4 // groups, 3, 2)
    expected = (weight.reshape(groups, 4 // groups, 4 // groups, 3, 2) * split).sum((2, 3, 4))
    np.testing.assert_allclose(y.ravel(), expected.ravel(), rtol=1e-4, atol=1e-6)


def test_transposed_convolution_keeps_the_axes():
    """torch's [Cin, Cout, h, w]: pixel 1 of channel i stamps w[i, o]; our kernel is that of the convolution."""
    weight = np.random.default_rng(0).normal(size=(3, 5, 2, 2)).astype(np.float32)
    kernel = one(weight.shape, (2, 2, 5, 3), (("m", "up"),)).ours(weight)
    for i in range(3):
        y = np.eye(3, dtype=np.float32)[i].reshape(1, 1, 1, 3)
        x = ops.conv_transpose(y, kernel, stride=2)
        np.testing.assert_allclose(x[0].transpose(2, 0, 1), weight[i], rtol=1e-6)


def test_the_inverse_and_the_types():
    tensor = one((5, 12), (2, 2, 3, 5), (("m", "fc", "linear"),))
    weight = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    np.testing.assert_array_equal(tensor.torchs(tensor.ours(weight)), weight)
    for dtype in (np.float16, np.float64, jnp.bfloat16):
        ours = tensor.ours(weight.astype(dtype))
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(tensor.torchs(ours), weight.astype(dtype).astype(np.float32))
    with pytest.raises(InputError, match="'fc.weight' holds int64, expected a floating type"):
        tensor.ours(weight.astype(np.int64))


def test_wrong_rules_are_told():
    like = {"params": {"a": {"conv": {"kernel": np.zeros((1, 1, 2, 2))}}, "b": {"conv": {"kernel": np.zeros(1)}}}}
    with pytest.raises(ValueError, match="no rule names the module 'b/conv'"):
        tensors(like, (("a/conv", "a"),))
    with pytest.raises(ValueError, match="both params/a/conv/kernel and params/b/conv/kernel the name 'x.weight'"):
        tensors(like, (("./conv", "x"),))
    assert under("backbone/", "encoder.", (("stem", "conv1"), ("fc", "fc", "linear"))) == (
        ("backbone/stem", "encoder.conv1"),
        ("backbone/fc", "encoder.fc", "linear"),
    )
    assert isinstance(tensors(like, ((r"(.)/conv", r"\1"),))["a.weight"], Tensor)


# The models whose names are checked by default: one of each kind; all others are slow.
QUICK = [
    ("torchvision", "resnet50"),
    ("torchvision", "vgg11"),
    ("torchvision", "alexnet"),
    ("torchvision", "mobilenet_v2"),
]
QUICK += [("timm", "vgg13_bn"), ("timm", "mobilenetv2_100"), ("timm", "xception41")]
EVERY = [(source, model) for source, models in classifiers.SOURCES.items() for model in models]


def slow_unless(quick, *values):
    return pytest.param(*values, marks=[] if quick else [pytest.mark.slow])


# Of each model's tensors in torchvision 0.29, timm 1.0 and segmentation_models_pytorch 0.6, with 3 classes: how many
# there are, and the CRC-32 of the sorted lines "name [shape]", without the counters of batch norms.
PUBLISHED = json.loads((pathlib.Path(__file__).parent / "published_names.json").read_text())


def comes_and_goes(module, source, model, **options):
    """Names alone: they are the published ones, and the state dict is matched with the same module."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    found = tensors(shapes, interop.find(source, model).rules(module, options))
    lines = sorted(f"{name} {list(tensor.shape)}" for name, tensor in found.items())
    key = " ".join([source, model, *(f"{name}={value}" for name, value in options.items())])
    assert f"{len(lines)} {zlib.crc32(chr(10).join(lines).encode())}" == PUBLISHED[key]
    state_dict = {name: np.broadcast_to(np.float32(0), tensor.shape) for name, tensor in found.items()}
    twin, again = interop.match(state_dict, source=source, model=model, **options)
    assert twin == module and again == list(found.values())


def classifier(source, model, **options):
    """Ours, with the defaults of their constructors."""
    widths = {**classifiers.TIMM_WIDTHS, "mobilenet_v2": 1.0}
    backbone = "mobilenet_v2" if model in widths else model
    own = {"dropout": 0.0, "sliding": model.startswith("vgg")} if source == "timm" else {}
    own |= {"num_classes": 3, "width": widths.get(model, 1.0), **options}
    return models.build("classifier", backbone=backbone, **own)


@pytest.mark.parametrize("source, model", [slow_unless(pair in QUICK, *pair) for pair in EVERY])
def test_every_classifier_comes_and_goes(source, model):
    comes_and_goes(classifier(source, model), source, model)


@pytest.mark.parametrize(
    "model", [slow_unless(n < 2, m) for n, m in enumerate(["resnet18", "vgg11_bn", "mobilenetv2_100", "xception41"])]
)
def test_timm_s_features(model):
    """Averaged in place of classified, and the maps of ``features_only``, whose names timm partly flattens."""
    comes_and_goes(classifier("timm", model, num_classes=0), "timm", model, num_classes=0)
    comes_and_goes(classifier("timm", model, num_classes=0, maps=True), "timm", model, features_only=True)


def test_torchvision_s_width_of_mobilenet():
    comes_and_goes(classifier("torchvision", "mobilenet_v2", width=0.5), "torchvision", "mobilenet_v2", width_mult=0.5)


def test_torchvision_s_dilation_is_our_output_stride():
    _, _, state_dict = resnet18()
    for dilated, stride in (((False, False, True), 16), ([False, True, True], 8), (None, 32)):
        module, _ = load(state_dict, replace_stride_with_dilation=dilated)
        assert module.output_stride == stride
    refused("replace_stride_with_dilation=.True, False, False.: expected one of", state_dict,
            replace_stride_with_dilation=(True, False, False))  # fmt: skip
    refused("width_mult=0.5: torchvision has it of a mobilenet alone, not of resnet18", state_dict, width_mult=0.5)


ENCODERS = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenet_v2"]
ENCODERS += ["tu-resnet18", "tu-xception41", "tu-xception65", "tu-xception71"]
UNETS = [*ENCODERS, *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")), "tu-vgg11_bn"]


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
@pytest.mark.parametrize("auxiliary", [True, False])
def test_torchvision_s_segmentation(backbone, auxiliary):
    options = {"num_classes": 3, "backbone": backbone, "auxiliary": auxiliary}
    comes_and_goes(
        models.build("fcn", variant="dilated", **options), "torchvision", f"fcn_{backbone}", aux_loss=auxiliary
    )
    deeplab = models.build("deeplab", variant="v3", output_stride=8, aspp_out_conv=True, **options)
    comes_and_goes(deeplab, "torchvision", f"deeplabv3_{backbone}", aux_loss=auxiliary)


def unet(encoder, **options):
    backbone = encoder.removeprefix("tu-")
    center = encoder.startswith("vgg")
    return models.build("unet", num_classes=3, variant="backbone", backbone=backbone, center=center, **options)


@pytest.mark.parametrize("encoder", [slow_unless(name == "vgg11_bn", name) for name in UNETS])
def test_smp_s_unet_on_every_encoder(encoder):
    comes_and_goes(unet(encoder), "smp", "Unet", encoder_name=encoder)


FOUR, THREE = {"decoder_channels": (64, 32, 16, 8)}, {"decoder_channels": (64, 32, 16)}


@pytest.mark.parametrize(
    "encoder, ours, theirs",
    [
        ("resnet18", FOUR, {"encoder_depth": 4, **FOUR}),
        ("resnet18", THREE, {"encoder_depth": 3, **THREE}),
        ("tu-resnet18", {"pruned": True, **FOUR}, {"encoder_depth": 4, **FOUR}),
        ("tu-resnet18", {"pruned": True, **THREE}, {"encoder_depth": 3, **THREE}),
        ("vgg11_bn", FOUR, {"encoder_depth": 4, **FOUR}),
        ("mobilenet_v2", THREE, {"encoder_depth": 3, **THREE}),
        ("resnet18", {"decoder_norm": "none"}, {"decoder_use_norm": False}),
        ("resnet18", {"attention": "scse"}, {"decoder_attention_type": "scse"}),
        ("resnet18", {"image_classes": 4}, {"aux_params": {"classes": 4}}),
    ],
)
def test_smp_s_unet_with_its_options(encoder, ours, theirs):
    comes_and_goes(unet(encoder, **ours), "smp", "Unet", encoder_name=encoder, **theirs)


@pytest.mark.parametrize("encoder", [slow_unless(name == "tu-resnet18", name) for name in ENCODERS])
def test_smp_s_deeplabs_on_every_encoder(encoder):
    """The defaults of smp's constructors, written out in our options."""
    comes_and_goes(deeplab(encoder, "DeepLabV3"), "smp", "DeepLabV3", encoder_name=encoder)
    comes_and_goes(deeplab(encoder, "DeepLabV3Plus"), "smp", "DeepLabV3Plus", encoder_name=encoder)


def deeplab(encoder, model, **options):
    common = {"aspp_rates": (12, 24, 36), "aspp_out_conv": True, "align_corners": True, "depthwise_norm": False}
    common |= {"backbone": encoder.removeprefix("tu-"), "dilate_first_block": not encoder.startswith("tu-")}
    if model == "DeepLabV3":
        common |= {"variant": "v3", "output_stride": 8}
        if encoder == "tu-xception71":  # timm leaves a shortcut out where the block strides no more
            common["backbone"] = "xception71_identity"
    else:
        common |= {"variant": "v3plus", "output_stride": 16, "decoder_convs": 1, "separable": True}
    return models.build("deeplab", num_classes=3, **common, **options)


@pytest.mark.parametrize("model", ["DeepLabV3", "DeepLabV3Plus"])
def test_smp_s_deeplabs_with_their_options(model):
    options = {"source": "smp", "model": model, "encoder_name": "resnet18"}
    comes_and_goes(deeplab("resnet18", model, image_classes=4), **options, aux_params={"classes": 4})
    separable = model == "DeepLabV3"
    comes_and_goes(deeplab("resnet18", model, aspp_separable=separable), **options, decoder_aspp_separable=separable)
    channels = {"aspp_channels": 8, "decoder_channels": 8}
    comes_and_goes(deeplab("resnet18", model, **channels), **options, decoder_channels=8)


def test_names_of_an_older_deeplabv3():
    """smp's own load_state_dict renames them: the decoder was a row of modules."""
    options = {"source": "smp", "model": "DeepLabV3", "encoder_name": "resnet18", "decoder_channels": 8}
    module = deeplab("resnet18", "DeepLabV3", aspp_channels=8, decoder_channels=8)
    state_dict = interop.to_torch(module, variables_of(module), **options)
    older = {}
    for name, value in state_dict.items():
        for today, then in (
            ("decoder.aspp.", "decoder.0."),
            ("decoder.conv.", "decoder.1."),
            ("decoder.bn", "decoder.2"),
        ):
            name = name.replace(today, then)
        older[name] = value
    assert {"decoder.0.convs.4.1.weight", "decoder.1.weight", "decoder.2.running_var"} <= set(older)
    _, tensors_found = interop.match(state_dict, **options)
    assert [tensor.name for tensor in interop.match(older, **options)[1]] == [tensor.name for tensor in tensors_found]


def test_options_that_change_no_number_are_passed_over():
    module, _, state_dict = resnet18()
    assert load(state_dict, weights="DEFAULT", progress=False, zero_init_residual=True)[0] == module


def test_what_smp_has_and_this_has_not_is_told():
    _, _, state_dict = resnet18()
    smp = functools.partial(refused, state_dict=state_dict, source="smp")
    smp("activation='sigmoid' of smp's Unet is not built here: expected None", model="Unet", activation="sigmoid")
    smp("encoder_depth=4 of smp's Unet is not built here: expected 5", model="Unet", encoder_depth=4)
    smp("upsampling=8 of smp's DeepLabV3Plus", model="DeepLabV3Plus", upsampling=8)
    smp("encoder_name='xception41' of smp is not a backbone here", model="Unet", encoder_name="xception41")
    smp("no backbone 'efficientnet-b0'", model="Unet", encoder_name="efficientnet-b0")


def test_classes_and_channels_are_read_off_the_tensors():
    module, variables, state_dict = resnet18(7, 1)
    loaded, found = load(state_dict)
    assert loaded == module and loaded.num_classes == 7
    assert found["params"]["backbone"]["stem"]["conv"]["kernel"].shape == (7, 7, 1, 64)
    jax.tree.map(np.testing.assert_array_equal, found, variables)


def test_a_mistake_names_the_tensor_and_the_nearest():
    _, _, state_dict = resnet18()
    refused(r"'layer9.0.conv1.weight' is no tensor of torchvision resnet18 \(1 unknown, 0 missing of 102\).*'layer",
            state_dict | {"layer9.0.conv1.weight": np.zeros(1)})  # fmt: skip
    renamed = {
        ("layer2.0.con1.weight" if name == "layer2.0.conv1.weight" else name): v for name, v in state_dict.items()
    }
    refused("'layer2.0.con1.weight' is no tensor.*1 unknown, 1 missing.*nearest: 'layer2.0.conv1.weight'", renamed)
    fewer = {name: value for name, value in state_dict.items() if name != "layer4.1.bn2.running_var"}
    refused("'layer4.1.bn2.running_var' is missing.*nearest: .*'layer4.0.bn2.running_var'", fewer)
    refused("'fc.weight' is missing", {name: value for name, value in state_dict.items() if name != "fc.weight"})
    refused(r"'layer1.0.conv1.weight' is \[64, 64, 3\], expected \[64, 64, 3, 3\] for params/backbone/layer1_0",
            state_dict | {"layer1.0.conv1.weight": np.zeros((64, 64, 3), np.float32)})  # fmt: skip
    refused("missing", state_dict, model="resnet34")


def test_a_wrong_source_model_or_option_names_the_nearest():
    _, _, state_dict = resnet18()
    refused("no source 'torchvison'.*did you mean 'torchvision'", state_dict, source="torchvison")
    refused("no model 'resnet19' of torchvision.*did you mean 'resnet18'", state_dict, model="resnet19")
    refused("no option 'num_class'.*'num_classes'.*its options are", state_dict, num_class=4)
    refused("num_classes=5, but the tensors are those of num_classes=4", state_dict, num_classes=5)
    refused("no backbone 'resnet19'", state_dict, source="smp", model="DeepLabV3Plus", encoder_name="resnet19")


def test_timm_s_tag_is_passed_over():
    _, variables, state_dict = resnet18()
    module, found = load(state_dict, source="timm", model="resnet18.a1_in1k", in_chans=3, drop_rate=0.1)
    assert module.dropout == 0.1
    refused("in_chans=1, but the tensors are those of in_chans=3", state_dict, source="timm", in_chans=1)
    jax.tree.map(np.testing.assert_array_equal, found, variables)


def test_report_has_a_line_per_tensor():
    module, _, state_dict = resnet18()
    lines = interop.report(state_dict, source="torchvision", model="resnet18").splitlines()
    assert len(lines) == 1 + len(state_dict) + 1
    for name, value in state_dict.items():
        (line,) = [line for line in lines if line.split()[0] == name]
        assert "not used" in line if name.endswith("tracked") else str(list(value.shape)) in line
    assert any(line.split()[-1] == "params/head/kernel" and "[out, in] to [1, 1, in, out]" in line for line in lines)
    parameters = 11_689_512 - 996 * 513
    assert lines[-1] == f"102 tensors, {parameters:,} parameters: each used once, every leaf filled"


def test_the_way_back_refuses_another_network():
    module, variables, _ = resnet18()
    with pytest.raises(InputError, match="has backbone='resnet34', this model 'resnet18'|'resnet34' of torchvision"):
        interop.to_torch(module, variables, source="torchvision", model="resnet34")
    plus = {"num_classes": 2, "backbone": "resnet18", "aspp_channels": 8, "decoder_channels": 8}
    smp = {"aspp_out_conv": True, "decoder_convs": 1, "depthwise_norm": False, "align_corners": True}
    smp |= {"dilate_first_block": True, "aspp_rates": (12, 24, 36)}
    options = {"source": "smp", "model": "DeepLabV3Plus", "encoder_name": "resnet18", "decoder_channels": 8}
    module = models.build("deeplab", **plus, **smp)
    variables = variables_of(module)
    state_dict = interop.to_torch(module, variables, **options)
    again, found = interop.load(state_dict, **options)
    assert again == module
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    other = models.build("deeplab", **plus, **{**smp, "align_corners": False})
    with pytest.raises(InputError, match="has align_corners=True, this model False: it would compute other numbers"):
        interop.to_torch(other, variables, **options)
    with pytest.raises(InputError, match="is not 'resnet18' of torchvision"):
        interop.to_torch(module, variables, source="torchvision", model="resnet18")
