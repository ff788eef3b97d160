"""A feature pyramid: every stage of a backbone at one number of channels, the coarse ones added to the finer."""

from collections.abc import Mapping

import flax.linen as nn

from segjax import layers, ops
from segjax.types import Array

VARIANTS: dict = {}  # it stands on a backbone and is none
LEVELS = ("p2", "p3", "p4", "p5", "p6")
STRIDES = {name: 2 ** int(name[1:]) for name in LEVELS}


class FPN(nn.Module):
    """Feature pyramid on the maps of strides 4, 8, 16 and 32.

    From the coarsest: inner = lateral 1x1 convolution of the stage + the coarser inner map, enlarged to its size (each
    pixel repeated); level = 3x3 convolution of inner. Level p6 is every second pixel of p5. No activations.

    Attributes:
        channels: of every level.
        norm: batch norm in place of the convolutions' biases.
        axis_name: pmap's axis, for batch norm.

    Source: Lin et al. 2017, section 3, https://arxiv.org/abs/1612.03144; p6: its section 4.1.
    """

    channels: int = 256
    norm: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, features: Mapping[str, Array], *, train: bool) -> dict[str, Array]:
        """Makes the levels.

        Args:
            features: "stride_4", "stride_8", "stride_16" and "out" (stride 32) of a backbone, [B, h, w, C].
            train: batch norm uses the batch's statistics.
        Returns:
            {"p2", ..., "p6"}: [B, h, w, channels] at the strides 4 to 64.
        """
        found, inner = {}, None
        for level, name in ((5, "out"), (4, "stride_16"), (3, "stride_8"), (2, "stride_4")):
            lateral = self._conv(features[name], 1, f"lateral{level}", train)
            inner = lateral if inner is None else lateral + _enlarge(inner, lateral.shape[1:3])
            found[f"p{level}"] = self._conv(inner, 3, f"out{level}", train)
        found["p6"] = found["p5"][:, ::2, ::2]
        return {level: found[level] for level in LEVELS}

    @nn.nowrap
    def _conv(self, x: Array, size: int, name: str, train: bool) -> Array:
        if self.norm:
            conv = layers.ConvNorm(self.channels, size, activation=None, axis_name=self.axis_name, name=name)
            return conv(x, train=train)
        # The paper's authors' rule ("Xavier"): a variance of 1 / (numbers that one output sums).
        deviation = (1 / (size**2 * x.shape[-1])) ** 0.5
        return layers.Conv(self.channels, size, bias=True, deviation=deviation, name=name)(x)


def _enlarge(x: Array, size: tuple[int, int]) -> Array:
    """[B, h, w, C] -> [B, *size, C]: pixel i of n takes pixel floor(i m / n) of m."""
    if size == (2 * x.shape[1], 2 * x.shape[2]):
        return x.repeat(2, axis=1).repeat(2, axis=2)
    return ops.resize(x, size, method="nearest")
