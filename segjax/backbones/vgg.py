"""VGG-11, 13, 16 and 19, with and without batch norm, in torchvision's layout: every convolution keeps its bias.

Stage k = 1 .. 5 is a row of 3x3 convolutions ``conv{k}_1``, ``conv{k}_2``, ... with ReLU, and a max-pool by 2.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax import backbones, layers, ops
from segjax.types import Array, InputError

CHANNELS = (64, 128, 256, 512, 512)
POOLS = ("floor", "ceil", "3x3")


class VGG(nn.Module):
    """A VGG network without its fully connected layers.

    Attributes:
        convs: convolutions of each of the five stages.
        norm: batch norm after each convolution.
        output_stride: stride of the last map. A pool that no longer strides reads every pixel, and what follows is
            dilated (``backbones.geometry``): at stride 16, taken at every second pixel, the map is the one at 32.
        width: a factor of every channel count.
        dilate_first_block: see ``backbones.geometry``; here the first pool that no longer strides is what it dilates.
        axis_name: pmap's axis, for batch norm.
        pool: the pools' windows and sizes. "floor": 2x2, an odd last row or column is dropped (torchvision); "ceil":
            2x2, it is a window of its own (Caffe: FCN); "3x3": padded, ceil(n / s) pixels, never dilated (DeepLab).

    Source: Simonyan & Zisserman 2015, table 1 (A, B, D, E), https://arxiv.org/abs/1409.1556.
    """

    convs: tuple[int, ...]
    norm: bool
    output_stride: int = 32
    width: float = 1.0
    dilate_first_block: bool = False
    axis_name: str | None = None
    pool: str = "floor"

    def __post_init__(self) -> None:
        """Checks the kind of pool; InputError for an unknown one."""
        if self.pool not in POOLS:
            raise InputError(f"pool={self.pool!r} of a VGG: expected one of {', '.join(POOLS)}")
        super().__post_init__()

    @nn.compact
    def __call__(self, image: Array, *, train: bool) -> dict[str, Array]:
        """Returns "stride_1" .. "stride_16" (the last map before each pool), "pool1" .. "pool5", and "out", the last.

        Under "floor" a pool has floor(n / 2) pixels.

        Raises:
            ValueError: under "floor", an image below ``output_stride`` pixels; the message names the least size.
        """
        if self.pool == "floor" and min(image.shape[1:3]) < 32:
            raise ValueError(f"image of {image.shape[1:3]} pixels: VGG with pool='floor' takes at least 32 x 32")
        x, features, reached, dilation = image, {}, 1, 1
        stages = backbones.geometry((2,) * len(self.convs), self.output_stride, self.dilate_first_block)
        for stage, (stride, first, others) in enumerate(stages, start=1):
            for index in range(1, self.convs[stage - 1] + 1):
                x = self._conv(x, CHANNELS[stage - 1], dilation, f"conv{stage}_{index}", train)
            features[f"stride_{reached}"] = x
            x = self._pool(x, stride, first)
            features[f"pool{stage}"] = x
            reached, dilation = reached * stride, others
        features["out"] = x
        return features

    @nn.nowrap
    def _conv(self, x: Array, channels: int, dilation: int, name: str, train: bool) -> Array:
        channels = max(1, round(channels * self.width))
        if self.norm:
            conv = layers.ConvNorm(channels, 3, dilation=dilation, axis_name=self.axis_name, bias=True, name=name)
            return conv(x, train=train)
        return jax.nn.relu(layers.Conv(channels, 3, dilation=dilation, bias=True, name=name)(x))

    @nn.nowrap
    def _pool(self, x: Array, stride: int, dilation: int) -> Array:
        """One max-pool; zeros beyond the map never win, or win over zeros: it follows a ReLU."""
        if self.pool == "3x3":
            return ops.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, stride=stride)
        if self.pool == "ceil":
            high = [max(0, (-(-n // stride) - 1) * stride + dilation + 1 - n) for n in x.shape[1:3]]
            x = jnp.pad(x, ((0, 0), *((0, n) for n in high), (0, 0)))
        return ops.max_pool(x, 2, stride=stride, dilation=dilation)


def _variants() -> dict[str, tuple[type[nn.Module], dict]]:
    convs = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
    kinds = {"": False, "_bn": True}
    return {
        f"vgg{depth}{suffix}": (VGG, {"convs": count, "norm": norm})
        for depth, count in convs.items()
        for suffix, norm in kinds.items()
    }


VARIANTS = _variants()
