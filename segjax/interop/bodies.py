"""Which names a backbone's tensors have in which source."""

from segjax.interop import mobilenet, resnet, vgg, xception
from segjax.interop.source import Body
from segjax.types import InputError

PREFIX = "backbone/"  # where our models keep their backbone


def find(backbone: str, source: str) -> Body:
    """Returns the names of a backbone's tensors.

    Args:
        backbone: a name that ``backbones.build`` knows.
        source: "torchvision", "smp" (torchvision's names) or "timm".
    Raises:
        InputError: a backbone that the source does not have.
    """
    if backbone.startswith("resnet"):
        return resnet.BODY
    if backbone.startswith("mobilenet"):
        return mobilenet.TIMM if source == "timm" else mobilenet.TORCHVISION
    if backbone == "alexnet" and source != "timm":
        return vgg.ALEXNET
    if backbone.startswith("vgg"):
        return vgg.body(backbone, timm=source == "timm")
    if backbone.startswith("xception") and source == "timm":
        return xception.BODY
    raise InputError(f"{source} has no {backbone!r}: expected a resnet, a vgg or mobilenet_v2")


def of_timm(backbone: str, output_stride: int) -> str:
    """Returns the backbone that timm builds at an output stride: another one of Xception-71 alone, at 8."""
    return f"{backbone}_identity" if (backbone, output_stride) == ("xception71", 8) else backbone


def features(backbone: str) -> Body:
    """Returns the names of a backbone's tensors in timm's ``features_only`` form, which flattens some; as ``find``."""
    if backbone.startswith("xception"):
        return xception.FEATURES
    if backbone.startswith("vgg"):
        return vgg.features(backbone)
    return find(backbone, "timm")
