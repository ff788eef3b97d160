"""AlexNet as torchvision has it: one column, no local response normalisation."""

import flax.linen as nn
import jax

from segjax import backbones, layers, ops
from segjax.types import Array

LEAST = 63  # pixels of the smallest image with a last map of one pixel


class AlexNet(nn.Module):
    """AlexNet without its fully connected layers.

    No map is padded before a pool, so maps are smaller than ceil(n / stride).

    Attributes:
        output_stride: stride of the last map; a pool that no longer strides reads every pixel, and what follows is
            dilated (``backbones.geometry``).
        width: a factor of every channel count.
        dilate_first_block: see ``backbones.geometry``; here the first pool that no longer strides is what it dilates.
        axis_name: taken as by every backbone; nothing here looks at the batch.
        ceil_mode: pools round sizes up, as Caffe's do (FCN).

    Source: Krizhevsky 2014, https://arxiv.org/abs/1404.5997 (the column of torchvision's ``alexnet``).
    """

    output_stride: int = 32
    width: float = 1.0
    dilate_first_block: bool = False
    axis_name: str | None = None
    ceil_mode: bool = False

    @nn.compact
    def __call__(self, image: Array, *, train: bool) -> dict[str, Array]:
        """Returns "stride_4", "stride_8", "stride_16" (before each pool), as far as they exist, and "out".

        Raises:
            ValueError: an image below 63 pixels on a side.
        """
        del train
        if min(image.shape[1:3]) < LEAST:
            raise ValueError(f"image of {image.shape[1:3]} pixels: AlexNet takes at least {LEAST} x {LEAST}")
        (_, *pools) = backbones.geometry((4, 2, 2, 2), self.output_stride, self.dilate_first_block)
        features, reached, dilation = {}, 4, 1

        def conv(x: Array, number: int, channels: int, size: int, stride: int = 1) -> Array:
            padding = 2 if number == 1 else dilation * (size // 2)
            channels = max(1, round(channels * self.width))
            layer = layers.Conv(channels, size, stride, dilation, bias=True, padding=padding, name=f"conv{number}")
            return jax.nn.relu(layer(x))

        x = conv(image, 1, 64, 11, 4)
        stages = (((2, 192, 5),), ((3, 384, 3), (4, 256, 3), (5, 256, 3)), ())
        for (stride, first, others), convs in zip(pools, stages, strict=True):
            features[f"stride_{reached}"] = x
            x = ops.max_pool(x, 3, stride=stride, dilation=first, ceil_mode=self.ceil_mode)
            reached, dilation = reached * stride, others
            for number, channels, size in convs:
                x = conv(x, number, channels, size)
        features["out"] = x
        return features


VARIANTS = {"alexnet": (AlexNet, {})}
