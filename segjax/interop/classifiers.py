"""Classifiers of torchvision and timm: which of our models they are, and the names of their tensors."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from segjax import layers, models
from segjax.interop import bodies, preprocessing
from segjax.interop.source import Body, Options, Shapes, Source, agreed, axis_length
from segjax.interop.tensors import Rules, under
from segjax.types import InputError

# timm's names of MobileNetV2: the factor of its channels.
TIMM_WIDTHS = {"mobilenetv2_050": 0.5, "mobilenetv2_075": 0.75, "mobilenetv2_100": 1.0, "mobilenetv2_140": 1.4}
STRIDES = {(False, False, False): 32, (False, False, True): 16, (False, True, True): 8}  # torchvision's dilations
XCEPTIONS = ("xception41", "xception65", "xception71")
NAMES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
)


def _torchvision(
    backbone: str,
    shapes: Shapes,
    *,
    num_classes: int | None = None,
    dropout: float | None = None,
    width_mult: float = 1.0,
    replace_stride_with_dilation: Sequence[bool] | None = None,
    weights: Any = None,  # and progress: what torchvision would download; the tensors are given here
    progress: bool = True,
    init_weights: bool = True,  # of a VGG, as the next of a ResNet: how it would be drawn
    zero_init_residual: bool = False,
) -> layers.Network:
    del weights, progress, init_weights, zero_init_residual
    _only("width_mult", width_mult, 1.0, backbone, "mobilenet")
    _only("replace_stride_with_dilation", replace_stride_with_dilation, None, backbone, "resnet")
    dilated = tuple(replace_stride_with_dilation or (False,) * 3)
    if dilated not in STRIDES:
        raise InputError(f"replace_stride_with_dilation={dilated}: expected one of {', '.join(map(str, STRIDES))}")
    found = agreed("num_classes", num_classes, _classes(shapes, bodies.find(backbone, "torchvision")))
    options = {"width": width_mult, "output_stride": STRIDES[dilated], "dropout": dropout}
    return models.build("classifier", num_classes=found, backbone=backbone, **options)


def _timm(
    backbone: str,
    width: float,
    shapes: Shapes,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    drop_rate: float = 0.0,
    output_stride: int = 32,
    features_only: bool = False,
    pretrained: bool = False,  # what timm would download
) -> layers.Network:
    del pretrained
    if backbone.startswith("vgg") and output_stride != 32:
        raise InputError(f"output_stride={output_stride!r}: timm's {backbone} has 32 alone")
    body = bodies.features(backbone) if features_only else bodies.find(backbone, "timm")
    headless = features_only or num_classes == 0
    found = 0 if headless else agreed("num_classes", num_classes, _classes(shapes, body))
    agreed("in_chans", in_chans, axis_length(shapes, f"{body.first}.weight", 1))
    return models.build(
        "classifier",
        num_classes=found,
        backbone=bodies.of_timm(backbone, output_stride),
        width=width,
        output_stride=output_stride,
        sliding=backbone.startswith("vgg"),
        maps=features_only,
        dropout=drop_rate,
    )


def _only(option: str, given: Any, default: Any, backbone: str, family: str) -> None:
    if given != default and not backbone.startswith(family):
        raise InputError(f"{option}={given!r}: torchvision has it of a {family} alone, not of {backbone}")


def _classes(shapes: Shapes, body: Body) -> int:
    _, last, *_ = body.head[-1]
    return axis_length(shapes, f"{last}.weight")


def _body(source: str, backbone: str, options: Options) -> Body:
    return bodies.features(backbone) if options.get("features_only") else bodies.find(backbone, source)


def _rules(source: str, module: layers.Network, options: Options) -> Rules:
    body = _body(source, module.backbone, options)
    return (*under(bodies.PREFIX, "", body.rules), *body.head)


def _first(source: str, module: layers.Network, options: Options) -> str:
    return f"{_body(source, module.backbone, options).first}.weight"


def _source(source: str, build: Callable[..., layers.Network], prepared: preprocessing.Preprocessing) -> Source:
    return Source(build, functools.partial(_rules, source), functools.partial(_first, source), prepared)


def _of_timm(backbone: str, width: float = 1.0) -> Source:
    prepared = preprocessing.XCEPTION if backbone.startswith("xception") else preprocessing.TIMM
    return _source("timm", functools.partial(_timm, backbone, width), prepared)


SOURCES = {
    "torchvision": {
        name: _source("torchvision", functools.partial(_torchvision, name), preprocessing.CLASSIFICATION)
        for name in (*NAMES, "mobilenet_v2", "alexnet")
    },
    "timm": {
        **{name: _of_timm(name) for name in (*NAMES, *XCEPTIONS)},
        **{name: _of_timm("mobilenet_v2", width) for name, width in TIMM_WIDTHS.items()},
    },
}
