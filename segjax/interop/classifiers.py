"""Classifiers of torchvision and timm: which of our models they are, and the names of their tensors."""

import functools
from typing import Any

from segjax import layers, models
from segjax.interop import bodies, preprocessing
from segjax.interop.source import Options, Shapes, Source, agreed, axis_length
from segjax.interop.tensors import Rules, under

# timm's names of our backbones, where they differ
TIMM = {"mobilenet_v2": "mobilenetv2_100"}
XCEPTIONS = ("xception41", "xception65", "xception71")
NAMES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenet_v2"),
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
)


def _build(
    body_source: str,
    backbone: str,
    shapes: Shapes,
    *,
    num_classes: int | None = None,
    dropout: float | None = None,
    weights: Any = None,  # and progress: what the source would download; the tensors are given here
    progress: bool = True,
) -> layers.Network:
    del weights, progress
    _, head, *_ = bodies.find(backbone, body_source).head[-1]
    found = agreed("num_classes", num_classes, axis_length(shapes, f"{head}.weight"))
    return models.build("classifier", num_classes=found, backbone=backbone, dropout=dropout)


def _rules(body_source: str, module: layers.Network, options: Options) -> Rules:
    del options
    body = bodies.find(module.backbone, body_source)
    return (*under(bodies.PREFIX, "", body.rules), *body.head)


def _first(body_source: str, module: layers.Network, options: Options) -> str:
    del options
    return f"{bodies.find(module.backbone, body_source).first}.weight"


def _source(source: str, backbone: str) -> Source:
    prepared = preprocessing.TIMM if source == "timm" else preprocessing.CLASSIFICATION
    prepared = preprocessing.XCEPTION if backbone.startswith("xception") else prepared
    bound = functools.partial
    return Source(bound(_build, source, backbone), bound(_rules, source), bound(_first, source), prepared)


SOURCES = {
    "torchvision": {name: _source("torchvision", name) for name in (*NAMES, "alexnet")},
    "timm": {TIMM.get(name, name): _source("timm", name) for name in (*NAMES, *XCEPTIONS)},
}
