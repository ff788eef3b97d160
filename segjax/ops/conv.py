"""Cross-correlation in one and two dimensions."""

from collections.abc import Sequence

import jax.numpy as jnp

from segjax.ops.conv_geometry import check_groups, check_pair, conv_geometry
from segjax.ops.conv_maps import convolve
from segjax.ops.geometry import Padding
from segjax.types import Array


def conv(
    x: Array,
    kernel: Array,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Array:
    """Cross-correlates a signal or an image with a kernel, which is not flipped.

    y[i, o] = sum over taps k and channels c of x[s i + d k - low, c] kernel[k, c, o], zero outside x. With `groups`,
    the channels of x and y fall into that many equal runs, and y's run g reads x's run g alone.

    Args:
        x: [B, W, Cin] or [B, H, W, Cin], floating.
        kernel: [kw, Cin / groups, Cout] or [kh, kw, Cin / groups, Cout], x's dtype.
        stride: pixels between outputs, an int or one per axis.
        padding: zeros around x: an int, one int per axis, one (low, high) pair per axis, "valid" (none), or "same"
            (ceil(n / stride) outputs; an odd total puts the larger half at the high end).
        dilation: pixels between taps, an int or one per axis.
        groups: 1 is dense, Cin is depthwise.

    Returns:
        [B, W', Cout] or [B, H', W', Cout] with W' = floor((W + low + high - d (kw - 1) - 1) / s) + 1.

    Raises:
        ValueError: ranks or channels that do not fit, a geometry argument out of range, a kernel larger than x.

    Differentiable in reverse mode, any number of times (`jax.grad`, `jax.vjp`, `jax.jacrev`). Forward mode
    (`jax.jvp`, `jax.jacfwd`) and `jax.linear_transpose` are refused: the gradients have forms of their own.

    Source:
        Dumoulin & Visin 2016, https://arxiv.org/abs/1603.07285.
    """
    check_pair("x", x, kernel)
    check_groups(groups, kernel.shape[-1], x.shape[-1])
    if x.shape[-1] != groups * kernel.shape[-2]:
        raise ValueError(
            f"x {x.shape} with kernel {kernel.shape} and groups={groups}: expected {groups * kernel.shape[-2]} "
            f"channels in x, or {x.shape[-1] // groups} inputs (Cin / groups) in the kernel"
        )
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    geometry = conv_geometry(x.shape[1:-1], kernel.shape, stride, padding, dilation, groups)
    if x.ndim == 3:
        return convolve(x[:, None], kernel[None], geometry)[:, 0]
    return convolve(x, kernel, geometry)
