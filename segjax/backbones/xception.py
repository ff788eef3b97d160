"""Aligned Xception-41, 65 and 71: Xception whose max-pools became strided separable convolutions, dilatable."""

import functools

import flax.linen as nn
import jax

from segjax import backbones, layers
from segjax.types import Array

EPSILON = 1e-3  # of every norm: TensorFlow's, and that of the published weights
# Blocks: channels of their three separable convolutions, and the stride of the third.
ENTRY = ((128, 2), (256, 2), (728, 2))
ENTRY_71 = ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2))


class Block(nn.Module):
    """Three separable convolutions, the last one strided, added to their input (or to its strided 1x1 convolution).

    A separable convolution is depthwise 3x3, norm, pointwise 1x1, norm. In the residual blocks a ReLU precedes each of
    the three; the last block of the network has no residual, and ReLU after every norm instead.

    Attributes:
        channels: of the three convolutions' results.
        stride: of the third.
        dilation: of all three.
        shortcut: whether the input is added through a 1x1 convolution with norm, as where the undilated block strides.
        residual: False in the last block.
        axis_name: pmap's axis.

    Source: Chen et al. 2018, figure 4, https://arxiv.org/abs/1802.02611.
    """

    channels: tuple[int, int, int]
    stride: int
    dilation: int
    shortcut: bool
    residual: bool = True
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Array]:
        """Maps [B, H, W, Cin] to ([B, ceil(H / stride), ...], what the third convolution reads, [B, H, W, ...])."""
        activation = None if self.residual else jax.nn.relu
        conv = functools.partial(layers.ConvNorm, activation=activation, axis_name=self.axis_name, epsilon=EPSILON)
        y = inner = x
        for number, channels in enumerate(self.channels, start=1):
            y = inner = jax.nn.relu(y) if self.residual else y
            y = _Separable(channels, self.stride if number == 3 else 1, self.dilation, conv, name=f"conv{number}")(
                y, train=train
            )
        if not self.residual:
            return y, inner
        if self.shortcut:
            x = conv(self.channels[-1], 1, self.stride, name="shortcut")(x, train=train)
        return x + y, inner


class _Separable(nn.Module):
    """Depthwise 3x3 and pointwise 1x1 convolution, each with what ``conv`` adds to it."""

    features: int
    stride: int
    dilation: int
    conv: functools.partial

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        x = self.conv(x.shape[-1], 3, self.stride, self.dilation, x.shape[-1], name="depthwise")(x, train=train)
        return self.conv(self.features, name="pointwise")(x, train=train)


class Xception(nn.Module):
    """Aligned Xception without its classifier.

    Attributes:
        entry: (channels, stride) of the blocks of the entry flow, whose 1st convolutions have as many channels.
        middle: how many blocks of 728 channels the middle flow has.
        output_stride: stride of the last map.
        width: a factor of every channel count.
        dilate_first_block: see ``backbones.geometry``; timm and the authors' code have False.
        axis_name: pmap's axis, for batch norm.
        identity: a block that strides no more and keeps its channels is added to its input itself, not to a 1x1
            convolution of it: timm's rule. One block of Xception-71 at stride 8 is such; "xception71_identity".

    Source: Chen et al. 2018, section 3.2 and figure 4, https://arxiv.org/abs/1802.02611; Chollet 2017, figure 5,
    https://arxiv.org/abs/1610.02357.
    """

    entry: tuple[tuple[int, int], ...]
    middle: int
    output_stride: int = 32
    width: float = 1.0
    dilate_first_block: bool = False
    axis_name: str | None = None
    identity: bool = False

    @nn.compact
    def __call__(self, image: Array, *, train: bool) -> dict[str, Array]:
        """Returns "stride_2" to "stride_16" as far as they exist, and "out".

        A map of stride s is what the last convolution of the block that strides on from s reads (after its ReLU), in
        DeepLabv3+ the decoder's skip.
        """
        scaled = functools.partial(_scaled, width=self.width)
        conv = functools.partial(layers.ConvNorm, axis_name=self.axis_name, epsilon=EPSILON)
        x = conv(scaled(32), 3, 2, name="stem1")(image, train=train)
        x = conv(scaled(64), 3, name="stem2")(x, train=train)
        blocks = [((channels,) * 3, stride) for channels, stride in (*self.entry, *self.middle * ((728, 1),))]
        blocks += [((728, 1024, 1024), 2), ((1536, 1536, 2048), 1)]
        strides = (2, *(stride for _, stride in blocks))
        (_, *stages) = backbones.geometry(strides, self.output_stride, self.dilate_first_block)
        features, reached = {}, 2
        for number, ((channels, undilated), (stride, dilation, _)) in enumerate(zip(blocks, stages, strict=True)):
            channels = tuple(scaled(count) for count in channels)
            last = number == len(blocks) - 1
            shortcut = (stride if self.identity else undilated) != 1 or channels[-1] != x.shape[-1]
            block = Block(channels, stride, dilation, shortcut, not last, self.axis_name, name=f"block{number}")
            x, inner = block(x, train=train)
            if undilated != 1:
                features[f"stride_{reached}"] = inner
            reached *= stride
        features["out"] = x
        return features


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


VARIANTS = {
    "xception41": (Xception, {"entry": ENTRY, "middle": 8}),
    "xception65": (Xception, {"entry": ENTRY, "middle": 16}),
    "xception71": (Xception, {"entry": ENTRY_71, "middle": 16}),
    "xception71_identity": (Xception, {"entry": ENTRY_71, "middle": 16, "identity": True}),
}
