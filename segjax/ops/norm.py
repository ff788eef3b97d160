"""Batch normalisation: a training form with its own gradient, and the affine form of inference."""

import functools

import jax
import jax.numpy as jnp

from segjax.types import Array


def batch_norm_apply(x: Array, scale: Array, bias: Array, mean: Array, var: Array, *, eps: float) -> Array:
    """Normalises with given statistics: y = (x - mean) / sqrt(var + eps) * scale + bias.

    Args:
        x: [..., C], floating.
        scale: f32[C].
        bias: f32[C].
        mean: f32[C].
        var: f32[C], >= 0.
        eps: >= 0, added to the variance.

    Returns:
        [..., C] of x's dtype, computed in float32.

    Raises:
        ValueError: eps < 0.

    Source:
        Ioffe & Szegedy 2015, algorithm 2, https://arxiv.org/abs/1502.03167.
    """
    _check(eps)
    factor = jax.lax.rsqrt(var + eps) * scale
    # One multiply-add: with x - mean apart, XLA's CPU back end stores that difference for the variance to share.
    y = x.astype(jnp.float32) * _along(x, factor) + _along(x, bias - mean * factor)
    return y.astype(x.dtype)


def batch_norm_train(
    x: Array, scale: Array, bias: Array, *, eps: float, axis_name: str | None = None
) -> tuple[Array, Array, Array]:
    """Normalises with the statistics of the batch.

    mean = sum(x) / n, var = sum((x - mean)^2) / n (biased), over every axis but the last and over `axis_name`.
    With z = (x - mean) / sqrt(var + eps), g the gradient of y and averages over the same n values,
    dx = scale / sqrt(var + eps) * (g - avg(g) - z avg(g z)): two reductions and one elementwise pass.

    Args:
        x: [..., C], floating.
        scale: f32[C].
        bias: f32[C].
        eps: >= 0, added to the variance.
        axis_name: mapped axis to take statistics over as well; equal shapes on each of its members.

    Returns:
        y [..., C] of x's dtype; mean f32[C]; var f32[C], biased. Gradients flow through y alone, as mean and var
        serve the running statistics.

    Raises:
        ValueError: eps < 0 or an empty batch.

    Source:
        Ioffe & Szegedy 2015, algorithm 1 and section 3, https://arxiv.org/abs/1502.03167.
    """
    _check(eps)
    if x.size == 0:
        raise ValueError(f"batch statistics of an empty array of shape {x.shape}: expected at least one value")
    return _train(x, scale, bias, eps, axis_name)


def _check(eps: float) -> None:
    if eps < 0:
        raise ValueError(f"eps={eps}: expected a number >= 0")


def _sum(x: Array, axis_name: str | None) -> Array:
    total = jnp.sum(x, axis=tuple(range(x.ndim - 1)), dtype=jnp.float32)
    return total if axis_name is None else jax.lax.psum(total, axis_name)


def _count(x: Array, axis_name: str | None) -> int:
    return x.size // x.shape[-1] * (1 if axis_name is None else jax.lax.axis_size(axis_name))


def _along(x: Array, channels: Array) -> Array:
    return channels.reshape((1,) * (x.ndim - 1) + (-1,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _train(x, scale, bias, eps, axis_name):
    return _train_forward(x, scale, bias, eps, axis_name)[0]


def _train_forward(x, scale, bias, eps, axis_name):
    count = _count(x, axis_name)
    mean = _sum(x, axis_name) / count
    # Two passes: the one-pass E[x^2] - mean^2 loses every digit where |mean| is large against the deviation.
    var = _sum(jnp.square(x.astype(jnp.float32) - _along(x, mean)), axis_name) / count
    y = batch_norm_apply(x, scale, bias, mean, var, eps=eps)
    return (y, mean, var), (x, scale, mean, var)


def _train_backward(eps, axis_name, saved, gradients):
    x, scale, mean, var = saved
    g, count = gradients[0].astype(jnp.float32), _count(x, axis_name)
    inverse = jax.lax.rsqrt(var + eps)
    d_bias = _sum(g, None)
    # Plus a negative, not the minus of the forward pass: XLA would store that difference from there until here.
    d_scale = _sum(g * (x.astype(jnp.float32) + _along(x, -mean)), None) * inverse
    both = jnp.stack([d_bias, d_scale])
    average_g, average_gz = (both if axis_name is None else jax.lax.psum(both, axis_name)) / count
    # scale * inverse * (g - avg(g) - z avg(g z)) with z = (x - mean) * inverse, as multiples of g, x and 1.
    of_g = scale * inverse
    of_x = -of_g * average_gz * inverse
    dx = g * _along(x, of_g) + (x.astype(jnp.float32) * _along(x, of_x) - _along(x, of_g * average_g + of_x * mean))
    return dx.astype(x.dtype), d_scale, d_bias


_train.defvjp(_train_forward, _train_backward)
