"""ResNet-18, 34, 50 and 101, the stride of a bottleneck in its 3x3 convolution (v1.5, as torchvision), dilatable."""

import functools

import flax.linen as nn
import jax

from segjax import backbones, layers, ops
from segjax.types import Array


class Block(nn.Module):
    """A residual block: relu(x' + f(x)), f two 3x3 convolutions, or 1x1, 3x3, 1x1 with four times the channels.

    Source: He et al. 2016, figure 5, https://arxiv.org/abs/1512.03385.
    """

    channels: int
    bottleneck: bool
    stride: int = 1
    dilations: tuple[int, int] = (1, 1)  # of the 3x3 convolutions: the strided one, and the one after it
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [B, H, W, Cin] to [B, ceil(H / stride), ceil(W / stride), Cout]."""
        conv = functools.partial(layers.ConvNorm, axis_name=self.axis_name)
        first, second = self.dilations
        features = self.channels * (4 if self.bottleneck else 1)
        if self.bottleneck:
            y = conv(self.channels, name="conv1")(x, train=train)
            y = conv(self.channels, 3, self.stride, first, name="conv2")(y, train=train)
            y = conv(features, activation=None, name="conv3")(y, train=train)
        else:
            y = conv(self.channels, 3, self.stride, first, name="conv1")(x, train=train)
            y = conv(features, 3, 1, second, activation=None, name="conv2")(y, train=train)
        if x.shape[-1] != features or self.stride != 1:
            x = conv(features, 1, self.stride, activation=None, name="shortcut")(x, train=train)
        return jax.nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network without its classifier.

    Attributes:
        blocks: residual blocks of each of the four stages.
        bottleneck: the kind of block.
        output_stride: stride of the last map.
        width: a factor of every channel count.
        dilate_first_block: see ``backbones.geometry``.
        axis_name: pmap's axis, for batch norm.

    Source: He et al. 2016, table 1, https://arxiv.org/abs/1512.03385.
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    output_stride: int = 32
    width: float = 1.0
    dilate_first_block: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: Array, *, train: bool) -> dict[str, Array]:
        """Returns the maps "stride_2" (after the stem) to "stride_16" that exist, and "out"."""
        base = max(1, round(64 * self.width))
        x = layers.ConvNorm(base, 7, 2, axis_name=self.axis_name, name="stem")(image, train=train)
        features = {"stride_2": x}
        x = ops.max_pool(x, 3, stride=2, padding=1)
        reached = 4
        stages = backbones.geometry((4, 2, 2, 2), self.output_stride, self.dilate_first_block)
        for stage, (stride, first, others) in enumerate(stages, start=1):
            stride = 1 if stage == 1 else stride  # the stem and the pool have done the first stage's 4
            for block in range(self.blocks[stage - 1]):
                x = Block(
                    base * 2 ** (stage - 1),
                    self.bottleneck,
                    stride if block == 0 else 1,
                    (first if block == 0 else others, others),
                    self.axis_name,
                    name=f"layer{stage}_{block}",
                )(x, train=train)
            reached *= stride
            features["out" if stage == 4 else f"stride_{reached}"] = x
        return features


VARIANTS = {
    "resnet18": (ResNet, {"blocks": (2, 2, 2, 2), "bottleneck": False}),
    "resnet34": (ResNet, {"blocks": (3, 4, 6, 3), "bottleneck": False}),
    "resnet50": (ResNet, {"blocks": (3, 4, 6, 3), "bottleneck": True}),
    "resnet101": (ResNet, {"blocks": (3, 4, 23, 3), "bottleneck": True}),
}
