"""What DeepLab puts on its dilated backbone: the wide-view branches of v1 and v2, the pyramid of v3 and v3+."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax import layers, ops
from segjax.types import Array


class LargeFov(nn.Module):
    """Branches that see far: each a dilated 3x3 convolution (fc6), a 1x1 one (fc7), the classes' scores; their sum.

    One branch of rate 12 is DeepLab-LargeFOV, whose fc6 is VGG's fully connected layer cut down to 3x3 and 1024
    channels; four branches are the atrous spatial pyramid pooling of v2. Without hidden channels a branch is the
    dilated convolution to the scores alone, as on ResNet-101.

    Attributes:
        num_classes: K.
        rates: dilation of each branch's 3x3 convolution.
        channels: of fc6 and fc7; 0 leaves both out.
        dropout: rate after fc6 and after fc7.
        smooth: an average of 3x3 pixels first (v1).
        axis_name: pmap's axis.

    Source: Chen et al. 2015 (v1), section 3.1 and table 2, https://arxiv.org/abs/1412.7062; Chen et al. 2018 (v2),
    section 3.2 and figure 7, https://arxiv.org/abs/1606.00915; the authors' Caffe networks.
    """

    num_classes: int
    rates: tuple[int, ...]
    channels: int
    dropout: float
    smooth: bool
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [B, H, W, Cin] to [B, H, W, K]."""
        if self.smooth:
            x = ops.avg_pool(x, 3, stride=1, padding=1)
        return sum(self._branch(x, number, rate, train) for number, rate in enumerate(self.rates, start=1))

    @nn.nowrap
    def _branch(self, x: Array, number: int, rate: int, train: bool) -> Array:
        score = functools.partial(layers.Conv, self.num_classes, bias=True, deviation=0.01, name=f"score_{number}")
        if not self.channels:
            return score(size=3, dilation=rate)(x)
        x = layers.Conv(self.channels, 3, dilation=rate, bias=True, name=f"fc6_{number}")(x)
        x = layers.Dropout(self.dropout, self.axis_name, name=f"drop6_{number}")(jax.nn.relu(x), train=train)
        x = layers.Conv(self.channels, bias=True, name=f"fc7_{number}")(x)
        x = layers.Dropout(self.dropout, self.axis_name, name=f"drop7_{number}")(jax.nn.relu(x), train=train)
        return score()(x)


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1 convolution, three dilated 3x3 ones and the image's mean, then 1x1.

    Attributes:
        channels: of each branch and of the result.
        rates: dilations of the 3x3 convolutions.
        separable, depthwise_norm: see ``conv3x3``.
        dropout: rate after the last convolution.
        axis_name: pmap's axis.

    Source: Chen et al. 2017 (v3), section 3.3 and figure 5, https://arxiv.org/abs/1706.05587.
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
        dilated = conv3x3(self.separable, self.depthwise_norm, self.axis_name)
        branches = [point(name="point")(x, train=train)]
        for number, rate in enumerate(self.rates, start=1):
            branches.append(dilated(self.channels, dilation=rate, name=f"dilated{number}")(x, train=train))
        pooled = point(name="pool")(ops.adaptive_avg_pool(x, 1), train=train)
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        y = point(name="project")(jnp.concatenate(branches, axis=-1), train=train)
        return layers.Dropout(self.dropout, self.axis_name, name="dropout")(y, train=train)


def conv3x3(separable: bool, depthwise_norm: bool, axis_name: str | None) -> functools.partial:
    """Returns the 3x3 convolution with batch norm and ReLU of pyramid and decoder, still without ``features``.

    Args:
        separable: depthwise and pointwise in place of one convolution.
        depthwise_norm: batch norm and ReLU between the two as well.
        axis_name: pmap's axis.
    """
    if separable:
        return functools.partial(layers.SeparableConvNorm, depthwise_norm=depthwise_norm, axis_name=axis_name)
    return functools.partial(layers.ConvNorm, size=3, axis_name=axis_name)
