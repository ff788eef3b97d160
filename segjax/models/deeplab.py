"""DeepLabv3+: a dilated encoder, atrous spatial pyramid pooling, and a decoder with one skip at stride 4.

Source: Chen et al. 2018, Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation,
https://arxiv.org/abs/1802.02611; the pyramid is that of Chen et al. 2017, https://arxiv.org/abs/1706.05587.
"""

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from segjax import backbones, layers, ops
from segjax.types import Array, InputError, Outputs

RATES = {16: (6, 12, 18), 8: (12, 24, 36)}  # of the pyramid, by output stride (2017, section 3.3)
LEGAL = {"variant": ("v3plus",), "output_stride": (16, 8), "dtype": ("float32", "bfloat16")}
LEAST = {"num_classes": 1, "aspp_channels": 1, "low_level_channels": 1, "decoder_channels": 1, "decoder_convs": 0}


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1 convolution, three dilated 3x3 ones and the image's mean, then 1x1.

    Source: Chen et al. 2017, figure 5, https://arxiv.org/abs/1706.05587.
    """

    channels: int
    rates: tuple[int, ...]
    separable: bool
    depthwise_norm: bool
    dropout: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [B, H, W, Cin] to [B, H, W, channels]."""
        point = functools.partial(layers.ConvNorm, self.channels, axis_name=self.axis_name)
        dilated = _conv3x3(self.separable, self.depthwise_norm, self.axis_name)
        branches = [point(name="point")(x, train=train)]
        for number, rate in enumerate(self.rates, start=1):
            branches.append(dilated(self.channels, dilation=rate, name=f"dilated{number}")(x, train=train))
        pooled = point(name="pool")(ops.adaptive_avg_pool(x, 1), train=train)
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        y = point(name="project")(jnp.concatenate(branches, axis=-1), train=train)
        return layers.Dropout(self.dropout, self.axis_name, name="dropout")(y, train=train)


class Model(layers.Network):
    """DeepLabv3+.

    Attributes:
        num_classes: K.
        backbone: a name that ``backbones.build`` knows.
        variant: "v3plus".
        output_stride: 16, or 8 (finer, about three times the work of the last stages).
        width: a factor of the backbone's channel counts.
        dilate_first_block: see ``backbones.geometry``.
        aspp_rates: dilations of the pyramid; None or () is the paper's (6, 12, 18) at stride 16, (12, 24, 36) at 8.
        aspp_channels: of each of its branches and of its output.
        aspp_dropout: rate after the pyramid's last convolution.
        aspp_out_conv: one more 3x3 convolution after the pyramid.
        low_level_channels: that the stride-4 skip is reduced to.
        decoder_channels: of the decoder's 3x3 convolutions.
        decoder_convs: how many of them.
        separable: makes the 3x3 convolutions of pyramid and decoder depthwise separable.
        depthwise_norm: batch norm and ReLU between the two parts of a separable convolution.
        align_corners: rule of the two bilinear enlargements, as in ``ops.resize``.
        dtype: "float32" or "bfloat16", of the computation; parameters, statistics and logits are float32.
        axis_name: pmap's axis.

    The values differ in segmentation_models_pytorch: decoder_convs=1, aspp_rates=(12, 24, 36) at either stride,
    aspp_out_conv, align_corners and dilate_first_block True, depthwise_norm False.
    """

    num_classes: int
    backbone: str = "resnet50"
    variant: str = "v3plus"
    output_stride: int = 16
    width: float = 1.0
    dilate_first_block: bool = False
    aspp_rates: tuple[int, ...] | None = None
    aspp_channels: int = 256
    aspp_dropout: float = 0.5
    aspp_out_conv: bool = False
    low_level_channels: int = 48
    decoder_channels: int = 256
    decoder_convs: int = 2
    separable: bool = True
    depthwise_norm: bool = True
    align_corners: bool = False
    dtype: str = "float32"
    axis_name: str | None = None

    def __post_init__(self) -> None:
        """Checks the options; InputError for a value that is not legal."""
        backbones.find(self.backbone)
        for name, legal in LEGAL.items():
            if getattr(self, name) not in legal:
                raise InputError(f"{name}={getattr(self, name)!r} of model 'deeplab': expected one of {legal}")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)!r} of model 'deeplab': expected at least {least}")
        if not 0 < self.width < float("inf"):
            raise InputError(f"width={self.width!r} of model 'deeplab': expected a factor above 0")
        if any(rate < 1 for rate in self.aspp_rates or ()):
            raise InputError(f"aspp_rates={self.aspp_rates!r} of model 'deeplab': expected dilations of at least 1")
        if not 0 <= self.aspp_dropout < 1:
            raise InputError(f"aspp_dropout={self.aspp_dropout!r} of model 'deeplab': expected 0 <= rate < 1")
        super().__post_init__()

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False, targets: Mapping[str, Array] | None = None) -> Outputs:
        """Computes the logits of every pixel, whatever the image's size.

        Args:
            image: f32[B, H, W, C], normalised.
            train: see ``layers.Network.apply``.
            targets: not used.
        Returns:
            {"logits": f32[B, H, W, K]}.
        """
        del targets
        features = backbones.build(
            self.backbone,
            output_stride=self.output_stride,
            width=self.width,
            dilate_first_block=self.dilate_first_block,
            axis_name=self.axis_name,
            name="backbone",
        )(image.astype(self.dtype), train=train)
        conv3x3 = _conv3x3(self.separable, self.depthwise_norm, self.axis_name)
        low, x = features["stride_4"], features["out"]

        rates = tuple(self.aspp_rates or RATES[self.output_stride])
        x = Pyramid(
            self.aspp_channels,
            rates,
            self.separable,
            self.depthwise_norm,
            self.aspp_dropout,
            self.axis_name,
            name="aspp",
        )(x, train=train)
        if self.aspp_out_conv:
            x = conv3x3(self.aspp_channels, name="aspp_out")(x, train=train)

        # The decoder: [B, H/4, W/4, aspp_channels + low_level_channels] -> decoder_channels -> K.
        low = layers.ConvNorm(self.low_level_channels, axis_name=self.axis_name, name="low_level")(low, train=train)
        x = ops.resize(x, low.shape[1:3], method="bilinear", align_corners=self.align_corners)
        x = jnp.concatenate([x, low], axis=-1)
        for number in range(1, self.decoder_convs + 1):
            x = conv3x3(self.decoder_channels, name=f"decoder{number}")(x, train=train)
        x = layers.Conv(self.num_classes, bias=True, deviation=0.01, name="head")(x)
        size = image.shape[1:3]
        x = ops.resize(x.astype(jnp.float32), size, method="bilinear", align_corners=self.align_corners)
        return {"logits": x}


def _conv3x3(separable: bool, depthwise_norm: bool, axis_name: str | None) -> functools.partial:
    """The 3x3 convolution with batch norm and ReLU of pyramid and decoder, still without ``features``."""
    if separable:
        return functools.partial(layers.SeparableConvNorm, depthwise_norm=depthwise_norm, axis_name=axis_name)
    return functools.partial(layers.ConvNorm, size=3, axis_name=axis_name)
