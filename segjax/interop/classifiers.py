"""Classifiers of torchvision and timm: which of our models they are, and the names of their tensors."""

import functools
from typing import Any

from segjax import layers, models
from segjax.interop import bodies, preprocessing
from segjax.interop.source import Body, Options, Shapes, Source, agreed, axis_length
from segjax.interop.tensors import Rules, under

TIMM = {"mobilenet_v2": "mobilenetv2_100"}  # its names of our backbones, where they differ
XCEPTIONS = ("xception41", "xception65", "xception71")
NAMES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenet_v2"),
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
)


def _torchvision(
    backbone: str,
    shapes: Shapes,
    *,
    num_classes: int | None = None,
    dropout: float | None = None,
    weights: Any = None,  # and progress: what torchvision would download; the tensors are given here
    progress: bool = True,
) -> layers.Network:
    del weights, progress
    found = agreed("num_classes", num_classes, _classes(shapes, bodies.find(backbone, "torchvision")))
    return models.build("classifier", num_classes=found, backbone=backbone, dropout=dropout)


def _timm(
    backbone: str,
    shapes: Shapes,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    drop_rate: float = 0.0,
    pretrained: bool = False,  # what timm would download
) -> layers.Network:
    del pretrained
    body = bodies.find(backbone, "timm")
    found = agreed("num_classes", num_classes, _classes(shapes, body))
    agreed("in_chans", in_chans, axis_length(shapes, f"{body.first}.weight", 1))
    return models.build("classifier", num_classes=found, backbone=backbone, dropout=drop_rate)


def _classes(shapes: Shapes, body: Body) -> int:
    _, last, *_ = body.head[-1]
    return axis_length(shapes, f"{last}.weight")


def _rules(source: str, module: layers.Network, options: Options) -> Rules:
    del options
    body = bodies.find(module.backbone, source)
    return (*under(bodies.PREFIX, "", body.rules), *body.head)


def _first(source: str, module: layers.Network, options: Options) -> str:
    del options
    return f"{bodies.find(module.backbone, source).first}.weight"


def _source(source: str, backbone: str) -> Source:
    prepared, build = (preprocessing.TIMM, _timm) if source == "timm" else (preprocessing.CLASSIFICATION, _torchvision)
    if backbone.startswith("xception"):
        prepared = preprocessing.XCEPTION
    bound = functools.partial
    return Source(bound(build, backbone), bound(_rules, source), bound(_first, source), prepared)


SOURCES = {
    "torchvision": {name: _source("torchvision", name) for name in (*NAMES, "alexnet")},
    "timm": {TIMM.get(name, name): _source("timm", name) for name in (*NAMES, *XCEPTIONS)},
}
