"""torchvision's segmentation models: FCN and DeepLabv3 on a dilated ResNet, with or without auxiliary head.

Source: torchvision/models/segmentation/fcn.py and deeplabv3.py.
"""

import functools
from typing import Any

from segjax import layers, models
from segjax.interop import bodies, preprocessing
from segjax.interop.source import Options, Shapes, Source, agreed, axis_length
from segjax.interop.tensors import Rules, under

SCORES = "classifier.4"
AUXILIARY = (
    (r"aux_head/hidden/conv", "aux_classifier.0"),
    (r"aux_head/hidden/norm", "aux_classifier.1"),
    (r"aux_head/score", "aux_classifier.4"),
)
FCN = (
    (r"head/hidden/conv", "classifier.0"),
    (r"head/hidden/norm", "classifier.1"),
    (r"head/score", SCORES),
    *AUXILIARY,
)
DEEPLABV3 = (
    (r"aspp/point/conv", "classifier.0.convs.0.0"),
    (r"aspp/point/norm", "classifier.0.convs.0.1"),
    (r"aspp/dilated(\d)/conv", r"classifier.0.convs.\1.0"),
    (r"aspp/dilated(\d)/norm", r"classifier.0.convs.\1.1"),
    (r"aspp/pool/conv", "classifier.0.convs.4.1"),
    (r"aspp/pool/norm", "classifier.0.convs.4.2"),
    (r"aspp/project/conv", "classifier.0.project.0"),
    (r"aspp/project/norm", "classifier.0.project.1"),
    (r"aspp_out/conv", "classifier.1"),
    (r"aspp_out/norm", "classifier.2"),
    (r"head", SCORES),
    *AUXILIARY,
)
MODELS = {
    "fcn": ("fcn", {"variant": "dilated"}, FCN),
    "deeplabv3": ("deeplab", {"variant": "v3", "output_stride": 8, "aspp_out_conv": True}, DEEPLABV3),
}


def _build(
    model: str,
    backbone: str,
    shapes: Shapes,
    *,
    num_classes: int | None = None,
    aux_loss: bool | None = None,
    weights: Any = None,  # these and progress: what the source would download; the tensors are given here
    weights_backbone: Any = None,
    progress: bool = True,
) -> layers.Network:
    del weights, weights_backbone, progress
    name, options, _ = MODELS[model]
    return models.build(
        name,
        num_classes=agreed("num_classes", num_classes, axis_length(shapes, f"{SCORES}.weight")),
        backbone=backbone,
        auxiliary=agreed("aux_loss", aux_loss, any(tensor.startswith("aux_classifier.") for tensor in shapes)),
        **options,
    )


def _rules(model: str, module: layers.Network, options: Options) -> Rules:
    del options
    return (*under(bodies.PREFIX, "backbone.", bodies.find(module.backbone, "torchvision").rules), *MODELS[model][2])


def _first(module: layers.Network, options: Options) -> str:
    del options
    return f"backbone.{bodies.find(module.backbone, 'torchvision').first}.weight"


def _source(model: str, backbone: str) -> Source:
    build, rules = functools.partial(_build, model, backbone), functools.partial(_rules, model)
    return Source(build, rules, _first, preprocessing.SEGMENTATION)


SOURCES = {
    "torchvision": {
        f"{model}_{backbone}": _source(model, backbone) for model in MODELS for backbone in ("resnet50", "resnet101")
    }
}
