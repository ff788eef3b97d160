"""Models of segmentation_models_pytorch on every encoder that is a backbone here.

Source: https://github.com/qubvel-org/segmentation_models.pytorch, decoders/deeplabv3 and decoders/unet.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from segjax import backbones, layers, models
from segjax.interop import bodies, preprocessing
from segjax.interop.source import Body, Options, Shapes, Source, agreed, axis_length
from segjax.interop.tensors import Rules, under
from segjax.types import InputError

HEAD = ((r"head", "segmentation_head.0"), (r"image/score", "classification_head.3", "linear"))
UNET = (
    *((rf"decoder{n + 1}/conv(\d)/conv", rf"decoder.blocks.{n}.conv\1.0") for n in range(5)),
    *((rf"decoder{n + 1}/conv(\d)/norm", rf"decoder.blocks.{n}.conv\1.1") for n in range(5)),
    *((rf"decoder{n + 1}/attention(\d)/reduce", rf"decoder.blocks.{n}.attention\1.attention.cSE.1") for n in range(5)),
    *((rf"decoder{n + 1}/attention(\d)/expand", rf"decoder.blocks.{n}.attention\1.attention.cSE.3") for n in range(5)),
    *((rf"decoder{n + 1}/attention(\d)/pixel", rf"decoder.blocks.{n}.attention\1.attention.sSE.0") for n in range(5)),
    *((f"center/conv{n + 1}/conv", f"decoder.center.{n}.0") for n in range(2)),  # with a VGG
    *((f"center/conv{n + 1}/norm", f"decoder.center.{n}.1") for n in range(2)),
)
PYRAMID = (
    (r"point/conv", "convs.0.0"),
    (r"point/norm", "convs.0.1"),
    (r"pool/conv", "convs.4.1"),
    (r"pool/norm", "convs.4.2"),
    (r"dilated(\d)/depthwise", r"convs.\1.0.0"),
    (r"dilated(\d)/pointwise/conv", r"convs.\1.0.1"),
    (r"dilated(\d)/pointwise/norm", r"convs.\1.1"),
    (r"dilated(\d)/conv", r"convs.\1.0"),  # decoder_aspp_separable=False
    (r"dilated(\d)/norm", r"convs.\1.1"),
    (r"project/conv", "project.0"),
    (r"project/norm", "project.1"),
)
DEEPLABV3 = (
    *under("aspp/", "decoder.aspp.", PYRAMID),
    (r"aspp_out/conv", "decoder.conv"),
    (r"aspp_out/norm", "decoder.bn"),
)
DEEPLABV3PLUS = (
    *under("aspp/", "decoder.aspp.0.", PYRAMID),
    (r"aspp_out/depthwise", "decoder.aspp.1.0"),
    (r"aspp_out/pointwise/conv", "decoder.aspp.1.1"),
    (r"aspp_out/pointwise/norm", "decoder.aspp.2"),
    (r"low_level/conv", "decoder.block1.0"),
    (r"low_level/norm", "decoder.block1.1"),
    (r"decoder1/depthwise", "decoder.block2.0.0"),
    (r"decoder1/pointwise/conv", "decoder.block2.0.1"),
    (r"decoder1/pointwise/norm", "decoder.block2.1"),
)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A backbone as smp knows it.

    Attributes:
        backbone: our name.
        prefix: of its tensors.
        body: their names.
        dilate_first_block: smp's rule for its own encoders; timm's ("tu-...") dilate as torchvision.
    """

    backbone: str
    prefix: str
    body: Body
    dilate_first_block: bool


def encoder(name: str) -> Encoder:
    """Returns what an ``encoder_name`` stands for: "resnet34", "vgg16_bn", "mobilenet_v2", "tu-xception65", ...

    Raises:
        InputError: an encoder that is no backbone here.
    """
    own = name.removeprefix("tu-")
    backbones.find(own)
    if name != own and own.startswith(("resnet", "vgg", "xception")):
        return Encoder(own, "encoder.model.", bodies.features(own), False)
    if name != own or own.startswith("xception"):
        raise InputError(
            f"encoder_name={name!r} of smp is not a backbone here: of timm's (tu-) resnets, VGGs, xception41 ..."
        )
    return Encoder(own, "encoder.", bodies.find(own, "smp"), True)


def prepared(options: Options) -> preprocessing.Preprocessing:
    """Returns what the weights of a model with these options expect: of timm's Xception what they expect there."""
    if encoder(options.get("encoder_name", "resnet34")).backbone.startswith("xception"):
        return dataclasses.replace(preprocessing.XCEPTION, resize="")
    return preprocessing.SMP


def _common(
    model: str,
    shapes: Shapes,
    encoder_name: str,
    in_channels: int | None,
    classes: int | None,
    aux_params: Options | None,
    **fixed: Any,
) -> dict[str, Any]:
    """The options that every model has: those of ours, once smp's are checked; ``fixed`` is (given, built)."""
    for name, (given, built) in fixed.items():
        if given not in built:
            raise InputError(f"{name}={given!r} of smp's {model} is not built here: expected {built[0]!r}")
    found = encoder(encoder_name)
    agreed("in_channels", in_channels, axis_length(shapes, f"{found.prefix}{found.body.first}.weight", 1))
    count = agreed("classes", classes, axis_length(shapes, f"{HEAD[0][1]}.weight"))
    return {"backbone": found.backbone, "num_classes": count, **_image_head(model, shapes, aux_params or {})}


def _image_head(model: str, shapes: Shapes, given: Options) -> dict[str, Any]:
    """Our options of smp's classification head; what ``aux_params`` leaves out is smp's default."""
    name = f"{HEAD[1][1]}.weight"
    if name not in shapes and not given:
        return {}
    known = {"classes": None, "pooling": "avg", "dropout": 0.2, "activation": None}
    if set(given) - set(known) or given.get("activation") is not None:
        raise InputError(f"aux_params={dict(given)} of smp's {model} is not built here: expected {known}, or fewer")
    params = known | dict(given)
    count = agreed("aux_params['classes']", params["classes"], axis_length(shapes, name))
    return {"image_classes": count, "image_pooling": params["pooling"], "image_dropout": params["dropout"] or 0.0}


def _unet(
    shapes: Shapes,
    *,
    encoder_name: str = "resnet34",
    encoder_depth: int = 5,
    encoder_weights: str | None = None,
    decoder_use_norm: Any = "batchnorm",
    decoder_use_batchnorm: Any = True,
    decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
    decoder_attention_type: str | None = None,
    decoder_interpolation: str = "nearest",
    in_channels: int | None = None,
    classes: int | None = None,
    activation: str | None = None,
    aux_params: Any = None,
) -> layers.Network:
    del encoder_weights
    fixed = {
        "encoder_depth": (encoder_depth, (len(decoder_channels),)),
        "decoder_use_norm": (decoder_use_norm, ("batchnorm", True, "identity", False)),
        "decoder_use_batchnorm": (decoder_use_batchnorm, (True, False)),
        "decoder_attention_type": (decoder_attention_type, (None, "scse")),
        "activation": (activation, (None, "identity")),
    }
    common = _common("Unet", shapes, encoder_name, in_channels, classes, aux_params, **fixed)
    # timm's encoders end where the decoder begins; a VGG's stages are all there.
    pruned = encoder_name.startswith("tu-") and encoder_depth < 5 and not common["backbone"].startswith("vgg")
    if pruned and not common["backbone"].startswith("resnet"):
        raise InputError(
            f"encoder_depth={encoder_depth} of smp's Unet on {encoder_name!r} is not built here: expected 5"
        )
    norm = decoder_use_norm in ("batchnorm", True) and decoder_use_batchnorm
    return models.build(
        "unet",
        **common,
        variant="backbone",
        decoder_channels=tuple(decoder_channels),
        pruned=pruned,
        decoder_norm="batch" if norm else "none",
        interpolation=decoder_interpolation,
        attention=decoder_attention_type or "none",
        center=encoder_name.startswith("vgg"),  # not with timm's
    )


def _deeplab(
    model: str,
    ours: Options,
    shapes: Shapes,
    *,
    encoder_name: str = "resnet34",
    encoder_depth: int = 5,
    encoder_weights: str | None = None,
    encoder_output_stride: int | None = None,
    decoder_channels: int = 256,
    decoder_atrous_rates: Sequence[int] = (12, 24, 36),
    decoder_aspp_separable: bool | None = None,
    decoder_aspp_dropout: float = 0.5,
    in_channels: int | None = None,
    classes: int | None = None,
    activation: str | None = None,
    upsampling: int | None = None,
    aux_params: Any = None,
) -> layers.Network:
    del encoder_weights
    plus = model == "DeepLabV3Plus"
    stride = encoder_output_stride or (16 if plus else 8)
    fixed = {
        "encoder_depth": (encoder_depth, (5,)),
        "activation": (activation, (None, "identity")),
        "upsampling": (upsampling, (None, 4 if plus else stride)),
    }
    common = _common(model, shapes, encoder_name, in_channels, classes, aux_params, **fixed)
    if common["backbone"].startswith("vgg"):
        raise InputError(f"encoder_name={encoder_name!r}: smp's {model} has no VGG encoder, which it cannot dilate")
    found = encoder(encoder_name)
    return models.build(
        "deeplab",
        **common | {"backbone": bodies.of_timm(found.backbone, stride)},
        **ours,
        output_stride=stride,
        dilate_first_block=found.dilate_first_block,
        aspp_rates=tuple(decoder_atrous_rates),
        aspp_channels=decoder_channels,
        aspp_dropout=decoder_aspp_dropout,
        aspp_separable=plus if decoder_aspp_separable is None else decoder_aspp_separable,
        aspp_out_conv=True,
        decoder_channels=decoder_channels,
        depthwise_norm=False,
        align_corners=True,
    )


def _rules(own: Rules, module: layers.Network, options: Options) -> Rules:
    del module
    found = encoder(options.get("encoder_name", "resnet34"))
    return (*under(bodies.PREFIX, found.prefix, found.body.rules), *own, *HEAD)


def _first(module: layers.Network, options: Options) -> str:
    del module
    found = encoder(options.get("encoder_name", "resnet34"))
    return f"{found.prefix}{found.body.first}.weight"


def _deeplabv3_todays(name: str) -> str:
    """The name that a tensor of an older DeepLabV3 has now: its decoder was a row of modules."""
    for older, part in (("decoder.0.", "aspp"), ("decoder.1.", "conv"), ("decoder.2.", "bn")):
        if name.startswith(older):
            return f"decoder.{part}.{name.removeprefix(older)}"
    return name


def _source(build: Callable[..., layers.Network], rules: Rules, todays: Callable[[str], str] = str) -> Source:
    return Source(build, functools.partial(_rules, rules), _first, preprocessing.SMP, todays)


SOURCES = {
    "smp": {
        "Unet": _source(_unet, UNET),
        "DeepLabV3": _source(functools.partial(_deeplab, "DeepLabV3", {"variant": "v3"}), DEEPLABV3, _deeplabv3_todays),
        "DeepLabV3Plus": _source(
            functools.partial(_deeplab, "DeepLabV3Plus", {"variant": "v3plus", "decoder_convs": 1, "separable": True}),
            DEEPLABV3PLUS,
        ),
    },
}
