"""Batch norm of regions of which some only fill up: statistics of the others alone."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax import layers, ops
from segjax.types import Array


class RegionNorm(layers.BatchNorm):
    """``layers.BatchNorm`` whose statistics count the rows that are wanted, over all devices.

    PyTorch, whose arrays are as long as there are regions, has no others. Without any the running statistics serve, and
    stay as they are.
    """

    @nn.compact
    def __call__(self, x: Array, *, train: bool, wanted: Array | None = None) -> Array:
        """Normalises x[n, h, w, C]; ``wanted`` bool[n], None for all."""
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if not train:
            return ops.batch_norm_apply(x, scale, bias, mean.value, var.value, eps=self.epsilon)
        weight = jnp.ones(len(x)) if wanted is None else wanted.astype(jnp.float32)
        values, weight = x.astype(jnp.float32), weight[:, None, None, None]
        count = self._total(weight.sum() * (x.shape[1] * x.shape[2]))
        least = jnp.maximum(count, 1.0)
        new_mean = self._total((values * weight).sum(axis=(0, 1, 2))) / least
        squares = jnp.square(values - new_mean[None, None, None]) * weight
        new_var = self._total(squares.sum(axis=(0, 1, 2))) / least
        some = count > 1
        new_mean, new_var = jnp.where(some, new_mean, mean.value), jnp.where(some, new_var, var.value)
        y = ops.batch_norm_apply(x, scale, bias, new_mean, new_var, eps=self.epsilon)
        unbiased = jnp.where(some, count / jnp.maximum(count - 1, 1.0), 1.0) * new_var
        for running, new in ((mean, new_mean), (var, unbiased)):
            running.value = jax.lax.stop_gradient(self.momentum * running.value + (1 - self.momentum) * new)
        return y

    @nn.nowrap
    def _total(self, x: Array) -> Array:
        return x if self.axis_name is None else jax.lax.psum(x, self.axis_name)


class RegionConv(nn.Module):
    """3x3 convolution of regions, batch norm, ReLU."""

    features: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool, wanted: Array | None = None) -> Array:
        """Maps [n, h, w, Cin] to [n, h, w, features]."""
        x = layers.Conv(self.features, 3, name="conv")(x)
        return jax.nn.relu(RegionNorm(axis_name=self.axis_name, name="norm")(x, train=train, wanted=wanted))


def convolutions(
    x: Array,
    count: int,
    channels: int,
    norm: Callable[..., RegionConv] | None,
    train: bool,
    wanted: Array | None,
) -> Array:
    """3x3 convolutions "conv1" ... of the module at hand, each with ReLU; with ``norm`` batch norm and no bias."""
    for number in range(1, count + 1):
        if norm:
            x = norm(name=f"conv{number}")(x, train=train, wanted=None if wanted is None else wanted.ravel())
        else:
            x = jax.nn.relu(layers.Conv(channels, 3, bias=True, name=f"conv{number}")(x))
    return x
