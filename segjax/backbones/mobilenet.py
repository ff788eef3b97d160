"""MobileNetV2, dilatable."""

import functools

import flax.linen as nn
import jax

from segjax import backbones, layers
from segjax.types import Array

# Table 2 of the paper: expansion, output channels, blocks, stride of the first block.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
LAST_STAGE = 5  # the stages from here on, and the last 1x1 convolution, end in "out"


def channels(count: float) -> int:
    """Returns the multiple of 8 nearest to a channel count, at least 8 and not below 0.9 times the count.

    Args:
        count: channels asked for.
    Returns:
        channels to have.
    Source: the code of Sandler et al. 2018 (``_make_divisible``).
    """
    rounded = max(8, int(count + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * count else rounded


class Block(nn.Module):
    """An inverted residual: 1x1 to ``expansion`` times the channels, depthwise 3x3, linear 1x1.

    Source: Sandler et al. 2018, figure 4 (d), https://arxiv.org/abs/1801.04381.
    """

    features: int
    expansion: int
    stride: int
    dilation: int
    residual: bool
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [B, H, W, Cin] to [B, ceil(H / stride), ceil(W / stride), features]."""
        conv = functools.partial(layers.ConvNorm, axis_name=self.axis_name)
        hidden = x.shape[-1] * self.expansion
        y = x
        if self.expansion != 1:
            y = conv(hidden, activation=jax.nn.relu6, name="expand")(y, train=train)
        y = conv(hidden, 3, self.stride, self.dilation, hidden, jax.nn.relu6, name="depthwise")(y, train=train)
        y = conv(self.features, activation=None, name="project")(y, train=train)
        return x + y if self.residual and y.shape == x.shape else y


class MobileNetV2(nn.Module):
    """MobileNetV2 without its classifier.

    Attributes:
        output_stride: stride of the last map.
        width: a factor of every channel count, rounded to multiples of 8; the last map keeps 1280 below 1.
        dilate_first_block: see ``backbones.geometry``.
        axis_name: pmap's axis, for batch norm.
        head: the last 1x1 convolution; without it "out" is the map it reads, as in timm's feature extractors.

    Source: Sandler et al. 2018, table 2, https://arxiv.org/abs/1801.04381.
    """

    output_stride: int = 32
    width: float = 1.0
    dilate_first_block: bool = False
    axis_name: str | None = None
    head: bool = True

    @nn.compact
    def __call__(self, image: Array, *, train: bool) -> dict[str, Array]:
        """Returns the maps "stride_2" to "stride_16" that exist, and "out" (the last 1x1 convolution's)."""
        conv = functools.partial(layers.ConvNorm, activation=jax.nn.relu6, axis_name=self.axis_name)
        x = conv(channels(32 * self.width), 3, 2, name="stem")(image, train=train)
        strides = (2, *(stride for _, _, _, stride in STAGES))
        (_, *stages) = backbones.geometry(strides, self.output_stride, self.dilate_first_block)
        features, reached, index = {}, 2, 1
        for number, ((expansion, count, blocks, undilated), (stride, first, others)) in enumerate(
            zip(STAGES, stages, strict=True)
        ):
            for block in range(blocks):
                x = Block(
                    channels(count * self.width),
                    expansion,
                    stride if block == 0 else 1,
                    first if block == 0 else others,
                    residual=block > 0 or undilated == 1,  # a block that would stride has none, dilated or not
                    axis_name=self.axis_name,
                    name=f"block{index}",
                )(x, train=train)
                index += 1
            reached *= stride
            if number < LAST_STAGE:
                features[f"stride_{reached}"] = x
        features["out"] = conv(channels(1280 * max(1.0, self.width)), name="head")(x, train=train) if self.head else x
        return features


VARIANTS = {"mobilenet_v2": (MobileNetV2, {})}
