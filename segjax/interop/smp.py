"""Models of segmentation_models_pytorch on every encoder that is a backbone here.

Source: https://github.com/qubvel-org/segmentation_models.pytorch, decoders/deeplabv3 and decoders/unet.
"""

from collections.abc import Sequence
from typing import Any

from segjax import backbones, layers, models
from segjax.interop import bodies, preprocessing
from segjax.interop.source import Shapes, Source, agreed, axis_length
from segjax.interop.tensors import Rules, under
from segjax.types import InputError

HEAD = "segmentation_head.0"
DEEPLABV3PLUS = (
    (r"aspp/point/conv", "decoder.aspp.0.convs.0.0"),
    (r"aspp/point/norm", "decoder.aspp.0.convs.0.1"),
    (r"aspp/pool/conv", "decoder.aspp.0.convs.4.1"),
    (r"aspp/pool/norm", "decoder.aspp.0.convs.4.2"),
    (r"aspp/dilated(\d)/depthwise", r"decoder.aspp.0.convs.\1.0.0"),
    (r"aspp/dilated(\d)/pointwise/conv", r"decoder.aspp.0.convs.\1.0.1"),
    (r"aspp/dilated(\d)/pointwise/norm", r"decoder.aspp.0.convs.\1.1"),
    (r"aspp/project/conv", "decoder.aspp.0.project.0"),
    (r"aspp/project/norm", "decoder.aspp.0.project.1"),
    (r"aspp_out/depthwise", "decoder.aspp.1.0"),
    (r"aspp_out/pointwise/conv", "decoder.aspp.1.1"),
    (r"aspp_out/pointwise/norm", "decoder.aspp.2"),
    (r"low_level/conv", "decoder.block1.0"),
    (r"low_level/norm", "decoder.block1.1"),
    (r"decoder1/depthwise", "decoder.block2.0.0"),
    (r"decoder1/pointwise/conv", "decoder.block2.0.1"),
    (r"decoder1/pointwise/norm", "decoder.block2.1"),
    (r"head", HEAD),
)


def _deeplabv3plus(
    shapes: Shapes,
    *,
    encoder_name: str = "resnet34",
    encoder_depth: int = 5,
    encoder_weights: str | None = None,
    encoder_output_stride: int = 16,
    decoder_channels: int = 256,
    decoder_atrous_rates: Sequence[int] = (12, 24, 36),
    decoder_aspp_separable: bool = True,
    decoder_aspp_dropout: float = 0.5,
    in_channels: int | None = None,
    classes: int | None = None,
    activation: str | None = None,
    upsampling: int = 4,
    aux_params: Any = None,
) -> layers.Network:
    del encoder_weights
    _only("DeepLabV3Plus", aux_params=(aux_params, None), activation=(activation, None), upsampling=(upsampling, 4))
    _only("DeepLabV3Plus", encoder_depth=(encoder_depth, 5), decoder_aspp_separable=(decoder_aspp_separable, True))
    return models.build(
        "deeplab",
        backbone=_backbone(shapes, encoder_name, in_channels),
        num_classes=_classes(shapes, classes),
        output_stride=encoder_output_stride,
        dilate_first_block=True,
        aspp_rates=tuple(decoder_atrous_rates),
        aspp_channels=decoder_channels,
        aspp_dropout=decoder_aspp_dropout,
        aspp_out_conv=True,
        decoder_channels=decoder_channels,
        decoder_convs=1,
        separable=True,
        depthwise_norm=False,
        align_corners=True,
    )


def _backbone(shapes: Shapes, encoder_name: str, in_channels: int | None) -> str:
    backbones.find(encoder_name)
    first = f"encoder.{bodies.find(encoder_name, 'smp').first}.weight"
    agreed("in_channels", in_channels, axis_length(shapes, first, 1))
    return encoder_name


def _classes(shapes: Shapes, classes: int | None) -> int:
    return agreed("classes", classes, axis_length(shapes, f"{HEAD}.weight"))


def _only(model: str, **options: tuple[Any, Any]) -> None:
    """InputError for an option with another value than the one that is built here."""
    for name, (given, built) in options.items():
        if given != built:
            raise InputError(f"{name}={given!r} of smp's {model} is not built here: expected {built!r}")


def _encoder(module: layers.Network) -> Rules:
    return under(bodies.PREFIX, "encoder.", bodies.find(module.backbone, "smp").rules)


def _first(module: layers.Network) -> str:
    return f"encoder.{bodies.find(module.backbone, 'smp').first}.weight"


SOURCES = {
    "smp": {
        "DeepLabV3Plus": Source(
            _deeplabv3plus, lambda module: (*_encoder(module), *DEEPLABV3PLUS), _first, preprocessing.SMP
        ),
    },
}
