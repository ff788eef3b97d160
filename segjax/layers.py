"""Linen modules that own parameters and call ops: convolution, batch norm, dropout, and the network every model is.

Every layer computes in the dtype of its input and keeps its parameters in float32. Under ``pmap`` the layers that
look at the whole batch (batch norm, dropout) need ``axis_name``; under ``jit`` they see the global batch anyway.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from segjax import ops
from segjax.ops.conv_geometry import check_groups
from segjax.ops.geometry import Padding
from segjax.types import Array, InputError, Outputs, Variables

NOISE = "noise"  # the collection through which ``Network.init`` hands every ``Conv`` its share of one draw


def from_options(module: type[nn.Module], where: str, options: Mapping[str, Any]) -> nn.Module:
    """Constructs a linen module from named options, lists turned into tuples.

    Args:
        module: the class; its dataclass fields are the legal options.
        where: what is being built, for the message.
        options: {option: value}; "name" is the name linen shall know the module by.
    Returns:
        the module.
    Raises:
        InputError: an option the module does not have; the message names the nearest one and lists all.
    """
    known = [field.name for field in dataclasses.fields(module) if field.name not in ("parent", "name")]
    for name in options:
        if name not in (*known, "name"):
            raise InputError(f"{where}: no option {name!r}{nearest(name, known)}; its options are {', '.join(known)}")
    return module(**{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()})


def nearest(name: str, known: list[str]) -> str:
    """Returns " (did you mean 'x'?)" for the known name nearest to ``name``, or "" when none is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


class Network(nn.Module):
    """A model: ``__call__(image, *, train=False, targets=None) -> outputs``, and an ``apply`` that keeps no state."""

    @nn.nowrap
    def require(self, name: str, legal: bool, expected: str) -> None:
        """InputError "NAME=VALUE of model 'FAMILY': expected ..." for an option whose value is not legal."""
        if not legal:
            family = type(self).__module__.rpartition(".")[2]
            raise InputError(f"{name}={getattr(self, name)!r} of model {family!r}: expected {expected}")

    @nn.nowrap
    def check_options(
        self,
        *,
        one_of: Mapping[str, tuple[Any, ...]] | None = None,
        at_least: Mapping[str, int] | None = None,
        factors: Sequence[str] = (),
        rates: Sequence[str] = (),
    ) -> None:
        """Checks options as a model's ``__post_init__`` asks; InputError for the first that is not legal.

        Args:
            one_of: {option: its legal values}.
            at_least: {option: the least legal value}.
            factors: options that are finite and above 0.
            rates: options with 0 <= value < 1; where None is the default, it is legal too.
        """
        for name, legal in (one_of or {}).items():
            self.require(name, getattr(self, name) in legal, f"one of {legal}")
        for name, least in (at_least or {}).items():
            self.require(name, getattr(self, name) >= least, f"at least {least}")
        for name in factors:
            self.require(name, 0 < getattr(self, name) < float("inf"), "a factor above 0")
        for name in rates:
            value, default = getattr(self, name), getattr(type(self), name)
            self.require(name, value is default is None or 0 <= value < 1, "0 <= rate < 1")

    @nn.nowrap
    def unread(self) -> tuple[str, ...]:
        """Returns the names of options that this network does not read: of other variants."""
        return ()

    @nn.nowrap
    def init(self, rngs: Any, *args: Any, **linen: Any) -> Variables:
        """Draws the variables: ``init(key, image) -> {"params", "batch_stats"}``.

        All kernels come from one draw, since compiling one draw per kernel takes as long as compiling a training
        step; and compiled, so that the forward pass is left out. A dict of keys or further keywords are linen's,
        and make this linen's own ``init``, which draws other numbers of the same distributions.
        """
        if linen or isinstance(rngs, Mapping):
            return super().init(rngs, *args, **linen)
        plain_init, plain_apply = super().init, super().apply

        @jax.jit
        def _init(key: Array, *args: Any) -> Variables:
            leaves, tree = jax.tree.flatten(jax.eval_shape(plain_init, key, *args)["params"])
            ends = np.cumsum([leaf.size for leaf in leaves])
            parts = jnp.split(jax.random.normal(key, (int(ends[-1]),)), ends[:-1])
            noise = tree.unflatten([part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)])
            return plain_apply({NOISE: noise}, *args, rngs={"params": key}, mutable=["params", "batch_stats"])[1]

        return _init(rngs, *args)

    @nn.nowrap
    def apply(
        self,
        variables: Variables,
        *args: Any,
        train: bool = False,
        targets: Mapping[str, Array] | None = None,
        key: Array | None = None,
        **linen: Any,
    ) -> Outputs | tuple[Outputs, Variables]:
        """Applies the model to an image: no state is kept anywhere.

        Args:
            variables: {"params", "batch_stats"}.
            *args: image f32[B, H, W, C], normalised.
            train: batch norm uses the batch's statistics, and dropout is on.
            targets: the batch, for models that sample their proposals by it; others ignore it.
            key: PRNG key of dropout, the same on every device.
            **linen: ``mutable``, ``rngs``, ``method`` or ``capture_intermediates``; any of them makes this linen's
                own ``apply``, with linen's own return value.
        Returns:
            train=False: outputs, {"logits": f32[B, H, W, K], ...}. train=True: (outputs, new batch_stats).
        """
        call = {name: value for name, value in (("train", train), ("targets", targets)) if value}
        if linen:
            return super().apply(variables, *args, **call, **linen)
        if not train:
            return super().apply(variables, *args, **call)
        rngs = {} if key is None else {"dropout": key}
        outputs, updates = super().apply(variables, *args, **call, rngs=rngs, mutable=["batch_stats"])
        return outputs, updates.get("batch_stats", {})


class Conv(nn.Module):
    """A convolution with its kernel: ``ops.conv``, by default padded so that stride 1 keeps the size.

    ``dilation`` above 1 makes it an atrous convolution, ``groups`` = Cin a depthwise one.

    Attributes:
        features: Cout.
        size: the kernel's rows and columns; odd, unless ``padding`` is given.
        stride, dilation, groups: as in ``ops.conv``.
        bias: adds one number per output channel, at first 0.
        deviation: of the normal distribution the kernel is drawn from; None: sqrt(2 / (size^2 Cout)), which is He's
            rule by the fan-out as torchvision counts it (for depthwise kernels too).
        padding: as in ``ops.conv``; None: dilation * (size // 2), from which output rows are ceil(H / stride).

    Raises:
        ValueError: an even size without ``padding``, features or channels that groups do not divide.

    Source: He et al. 2015, section 2.2, https://arxiv.org/abs/1502.01852.
    """

    features: int
    size: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    bias: bool = False
    deviation: float | None = None
    padding: Padding | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, Cin] to [B, H', W', Cout], H' = ceil(H / stride) with the default padding."""
        check_groups(self.groups, self.features, x.shape[-1])
        if self.padding is None and self.size % 2 == 0:
            raise ValueError(f"size={self.size} without padding: expected an odd size, or a padding")
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self._draw, shape).astype(x.dtype)
        padding = self.dilation * (self.size // 2) if self.padding is None else self.padding
        y = ops.conv(x, kernel, stride=self.stride, padding=padding, dilation=self.dilation, groups=self.groups)
        if self.bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype)[None, None, None]
        return y

    @nn.nowrap
    def _draw(self, key: Array, shape: tuple[int, ...]) -> Array:
        deviation = (2 / (self.size**2 * self.features)) ** 0.5 if self.deviation is None else self.deviation
        return deviation * _noise(self, key, shape)


def _noise(module: nn.Module, key: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal numbers for a module's kernel: its share of the network's one draw, where there is one."""
    if module.has_variable(NOISE, "kernel"):
        return module.get_variable(NOISE, "kernel")
    return jax.random.normal(key, shape)


class ConvTranspose(nn.Module):
    """A transposed convolution with its kernel: ``ops.conv_transpose``, by default U-Net's up-convolution 2x2.

    Attributes:
        features: channels of the result.
        size: the kernel's rows and columns.
        stride, padding, output_padding, dilation, groups: as in ``ops.conv_transpose``.
        bias: adds one number per channel of the result, at first 0.
        bilinear: start as bilinear enlargement of each channel (``ops.bilinear_kernel``) in place of random numbers;
            needs as many channels as come in.
        deviation: of the normal distribution the kernel is drawn from; None: sqrt(2 / n) by He's rule, with n =
            size^2 Cin / (stride^2 groups), the products that a pixel of the result sums.

    The kernel is [size, size, features / groups, Cin], that of the convolution whose transpose this is.

    Source: Long et al. 2015, section 3.3, https://arxiv.org/abs/1411.4038; He et al. 2015, section 2.2,
    https://arxiv.org/abs/1502.01852.
    """

    features: int
    size: int = 2
    stride: int = 2
    padding: Padding = 0
    output_padding: int | tuple[int, int] = 0
    dilation: int = 1
    groups: int = 1
    bias: bool = False
    bilinear: bool = False
    deviation: float | None = None

    @nn.compact
    def __call__(self, y: Array, *, output_size: tuple[int, int] | None = None) -> Array:
        """Maps [B, H', W', Cin] to [B, H, W, features]; ``output_size`` as in ``ops.conv_transpose``.

        Raises:
            ValueError: channels that groups do not divide, ``bilinear`` with another number of channels than come in,
                and as ``ops.conv_transpose``.
        """
        check_groups(self.groups, self.features, y.shape[-1])
        shape = (self.size, self.size, self.features // self.groups, y.shape[-1])
        kernel = self.param("kernel", self._draw, shape).astype(y.dtype)
        x = ops.conv_transpose(
            y,
            kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            output_padding=self.output_padding,
            output_size=output_size,
        )
        if self.bias:
            x += self.param("bias", nn.initializers.zeros, (self.features,)).astype(y.dtype)[None, None, None]
        return x

    @nn.nowrap
    def _draw(self, key: Array, shape: tuple[int, ...]) -> Array:
        if self.bilinear:
            if shape[3] != self.features:
                raise ValueError(
                    f"bilinear with {shape[3]} channels in and features={self.features}: expected equal numbers"
                )
            return ops.bilinear_kernel(self.size, self.features, groups=self.groups)
        summed = self.size**2 * shape[3] / (self.stride**2 * self.groups)
        deviation = (2 / summed) ** 0.5 if self.deviation is None else self.deviation
        return deviation * _noise(self, key, shape)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with the statistics of the global batch.

    Training: y = scale * (x - m) / sqrt(v + eps) + bias with the batch's mean m and biased variance v; the running
    statistics move by r <- momentum * r + (1 - momentum) * new, where the variance's new value is the unbiased one,
    v * n / (n - 1): both as PyTorch, whose momentum is 1 - ours. Evaluation: m and v are the running ones.

    A channel with a single value in the whole batch (n = 1: image pooling at batch size 1) has no variance; it is
    normalised by the running statistics, which stay as they are. PyTorch raises an error there.

    Source: Ioffe & Szegedy 2015, algorithm 1, https://arxiv.org/abs/1502.03167.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalises x[..., C]; statistics are computed in float32 whatever the dtype of x."""
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        count = x.size // x.shape[-1]
        if train and self.axis_name:
            count *= jax.lax.axis_size(self.axis_name)
        if not train or count == 1:
            return ops.batch_norm_apply(x, scale, bias, mean.value, var.value, eps=self.epsilon)
        y, new_mean, new_var = ops.batch_norm_train(x, scale, bias, eps=self.epsilon, axis_name=self.axis_name)
        mean.value = self.momentum * mean.value + (1 - self.momentum) * new_mean
        var.value = self.momentum * var.value + (1 - self.momentum) * (count / (count - 1)) * new_var
        return y


class Dropout(nn.Module):
    """Sets each value to 0 with probability ``rate`` and divides the others by 1 - rate, while training.

    Example i of the global batch draws from fold_in(key, i), so that the number of devices changes nothing.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps x[B, ...] to the same shape.

        Raises:
            ValueError: training without a key.
        """
        if not train or self.rate == 0:
            return x
        if not self.has_rng("dropout"):
            raise ValueError(f"dropout at rate {self.rate} draws random numbers: apply(..., train=True, key=KEY)")
        index = jnp.arange(x.shape[0])
        if self.axis_name:
            index += jax.lax.axis_index(self.axis_name) * x.shape[0]
        key = self.make_rng("dropout")
        keep = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(key, i), 1 - self.rate, x.shape[1:]))(index)
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros_like(x))


class ConvNorm(nn.Module):
    """Convolution, batch norm, activation (None: linear); a bias before the norm, where published weights have one."""

    features: int
    size: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    activation: Callable[[Array], Array] | None = jax.nn.relu
    axis_name: str | None = None
    bias: bool = False
    epsilon: float = 1e-5  # of the norm

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [B, H, W, Cin] to [B, ceil(H / stride), ceil(W / stride), features]."""
        x = Conv(self.features, self.size, self.stride, self.dilation, self.groups, self.bias, name="conv")(x)
        x = BatchNorm(epsilon=self.epsilon, axis_name=self.axis_name, name="norm")(x, train=train)
        return x if self.activation is None else self.activation(x)


class SeparableConvNorm(nn.Module):
    """Depthwise convolution, then pointwise convolution, batch norm and ReLU.

    ``depthwise_norm`` puts batch norm and ReLU between the two as well, as the TensorFlow DeepLab does; without, the
    pair is one low-rank convolution.

    Source: Chen et al. 2018 (DeepLabv3+), section 3.1, https://arxiv.org/abs/1802.02611.
    """

    features: int
    size: int = 3
    dilation: int = 1
    depthwise_norm: bool = True
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [B, H, W, Cin] to [B, H, W, features]."""
        channels = x.shape[-1]
        x = Conv(channels, self.size, dilation=self.dilation, groups=channels, name="depthwise")(x)
        if self.depthwise_norm:
            x = jax.nn.relu(BatchNorm(axis_name=self.axis_name, name="depthwise_norm")(x, train=train))
        return ConvNorm(self.features, axis_name=self.axis_name, name="pointwise")(x, train=train)
