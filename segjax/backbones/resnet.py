"""ResNet-18 to 152, dilatable.

A bottleneck strides in its 3x3 convolution (torchvision, timm, segmentation_models_pytorch), or, in the variants
"resnet50_v1" and so on, in its first 1x1 convolution, as in the paper and in the weights that its authors published for
Caffe. Kernels have the same shapes either way, so that weights of the other kind load and give other numbers.
"""

import functools

import flax.linen as nn
import jax

from segjax import backbones, layers, ops
from segjax.types import Array, InputError

STRIDE_PLACES = ("3x3", "1x1")


class Block(nn.Module):
    """A residual block: relu(x' + f(x)), f two 3x3 convolutions, or 1x1, 3x3, 1x1 with four times the channels.

    Source: He et al. 2016, figure 5, https://arxiv.org/abs/1512.03385.
    """

    channels: int
    bottleneck: bool
    stride: int = 1
    dilations: tuple[int, int] = (1, 1)  # of the 3x3 convolutions: the strided one, and the one after it
    axis_name: str | None = None
    stride_place: str = "3x3"
    norm_epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [B, H, W, Cin] to [B, ceil(H / stride), ceil(W / stride), Cout]."""
        conv = functools.partial(layers.ConvNorm, axis_name=self.axis_name, epsilon=self.norm_epsilon)
        first, second = self.dilations
        features = self.channels * (4 if self.bottleneck else 1)
        if self.bottleneck:
            pointwise, spatial = (self.stride, 1) if self.stride_place == "1x1" else (1, self.stride)
            y = conv(self.channels, 1, pointwise, name="conv1")(x, train=train)
            y = conv(self.channels, 3, spatial, first, name="conv2")(y, train=train)
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
        blocks: residual blocks of each of the four stages, or of the first ones: then "out" is the last one's map.
        bottleneck: the kind of block.
        output_stride: stride of the last map.
        width: a factor of every channel count.
        dilate_first_block: see ``backbones.geometry``.
        axis_name: pmap's axis, for batch norm.
        stride_place: "3x3" or "1x1", the convolution of a bottleneck that strides.
        cascade: how many copies of the fourth stage follow it, each to stride by 2, or dilated in place of it.
        multi_grid: factors of the dilations of the fourth stage's blocks (and of its copies'), () for ones: (1, 2, 4).
        norm_epsilon: of every batch norm.

    Source: He et al. 2016, table 1, https://arxiv.org/abs/1512.03385; cascade and multi-grid: Chen et al. 2017
    (DeepLabv3), sections 3.2.1 and 3.2.2, https://arxiv.org/abs/1706.05587.
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    output_stride: int = 32
    width: float = 1.0
    dilate_first_block: bool = False
    axis_name: str | None = None
    stride_place: str = "3x3"
    cascade: int = 0
    multi_grid: tuple[int, ...] = ()
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        """Checks the options; InputError for a value that is not legal."""
        if self.stride_place not in STRIDE_PLACES:
            raise InputError(f"stride_place={self.stride_place!r} of a ResNet: expected one of {STRIDE_PLACES}")
        if self.cascade < 0:
            raise InputError(f"cascade={self.cascade!r} of a ResNet: expected 0 copies of its last stage, or more")
        blocks = self.blocks[-1]
        if self.multi_grid and (len(self.multi_grid) != blocks or min(self.multi_grid) < 1):
            example = f"such as {(1, 2, 4)[:blocks]}, or () for ones"
            raise InputError(f"multi_grid={self.multi_grid!r} of a ResNet: expected {blocks} factors from 1, {example}")
        super().__post_init__()

    @nn.compact
    def __call__(self, image: Array, *, train: bool) -> dict[str, Array]:
        """Returns the maps "stride_2" (after the stem) to "stride_16" that exist, and "out"."""
        base = max(1, round(64 * self.width))
        stem = layers.ConvNorm(base, 7, 2, axis_name=self.axis_name, epsilon=self.norm_epsilon, name="stem")
        x = stem(image, train=train)
        features = {"stride_2": x}
        x = ops.max_pool(x, 3, stride=2, padding=1)
        reached = 4
        strides = (4, 2, 2, 2, *self.cascade * (2,))[: len(self.blocks) + self.cascade]
        stages = backbones.geometry(strides, self.output_stride, self.dilate_first_block)
        for stage, (stride, first, others) in enumerate(stages, start=1):
            stride = 1 if stage == 1 else stride  # the stem and the pool have done the first stage's 4
            for block in range(self.blocks[min(stage, 4) - 1]):
                grid = self.multi_grid[block] if self.multi_grid and stage >= 4 else 1
                x = Block(
                    base * 2 ** (min(stage, 4) - 1),
                    self.bottleneck,
                    stride if block == 0 else 1,
                    (grid * (first if block == 0 else others), grid * others),
                    self.axis_name,
                    self.stride_place,
                    self.norm_epsilon,
                    name=f"layer{stage}_{block}",
                )(x, train=train)
            reached *= stride
            features["out" if stage == len(stages) else f"stride_{reached}"] = x
        return features


_DEEP = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
VARIANTS = {
    "resnet18": (ResNet, {"blocks": (2, 2, 2, 2), "bottleneck": False}),
    "resnet34": (ResNet, {"blocks": (3, 4, 6, 3), "bottleneck": False}),
    **{f"resnet{depth}": (ResNet, {"blocks": blocks, "bottleneck": True}) for depth, blocks in _DEEP.items()},
    **{
        f"resnet{depth}_v1": (ResNet, {"blocks": blocks, "bottleneck": True, "stride_place": "1x1"})
        for depth, blocks in _DEEP.items()
    },
}
