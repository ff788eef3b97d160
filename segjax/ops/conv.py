"""Cross-correlation in one and two dimensions."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from segjax.ops.depthwise import depthwise
from segjax.ops.geometry import Geometry, Padding, conv_geometry
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

    On a CPU depthwise and 1x1 kernels take faster forms with gradients of their own, so that reverse mode, twice too,
    is differentiation's way through them (`jax.grad`, `jax.vjp`, `jax.jacrev`; not `jax.jvp`, `jax.jacfwd`).

    Source:
        Dumoulin & Visin 2016, https://arxiv.org/abs/1603.07285.
    """
    check_pair("x", x, kernel)
    if groups < 1 or x.shape[-1] != groups * kernel.shape[-2]:
        raise ValueError(
            f"x {x.shape} with kernel {kernel.shape} and groups={groups}: expected {kernel.shape[-2]} * groups "
            f"channels in x{_nearest_groups(x.shape[-1], kernel.shape[-2])}"
        )
    geometry = conv_geometry(x.shape[1:-1], kernel.shape, stride, padding, dilation, groups)
    if x.ndim == 3:
        return conv2d(x[:, None], kernel[None], geometry)[:, 0]
    return conv2d(x, kernel, geometry)


def check_pair(name: str, x: Array, kernel: Array) -> None:
    """Checks that an array and a kernel are both of one dimension, or both of two, and of one dtype.

    Args:
        name: the array's name, for the message.
        x: [B, W, C] or [B, H, W, C].
        kernel: [kw, I, O] or [kh, kw, I, O].

    Raises:
        ValueError: they are not.
    """
    if kernel.ndim not in (3, 4) or x.ndim != kernel.ndim:
        raise ValueError(
            f"{name} {x.shape} with kernel {kernel.shape}: expected [B, W, C] with [kw, I, O], "
            "or [B, H, W, C] with [kh, kw, I, O]"
        )
    dtypes = [jax.dtypes.canonicalize_dtype(array.dtype) for array in (x, kernel)]
    if dtypes[0] != dtypes[1]:
        raise ValueError(f"{name} of {dtypes[0]} with a kernel of {dtypes[1]}: expected one dtype for both")


def _nearest_groups(channels: int, per_group: int) -> str:
    if per_group and channels % per_group == 0:
        return f": groups={channels // per_group}"
    return f"; {channels} channels are no multiple of {per_group}"


def conv2d(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Cross-correlates images with a kernel; `ops.conv` after its arguments are read.

    Args:
        x: [B, H, W, Cin].
        kernel: [kh, kw, Cin / groups, Cout].
        geometry: of the convolution.

    Returns:
        [B, H', W', Cout].
    """
    _, window, stride, pads, dilation, groups, _ = geometry
    if groups > 1 and groups == x.shape[3] == kernel.shape[3]:
        return depthwise(x, kernel, stride, pads, dilation)
    if groups == 1 and window == (1, 1) and pads == ((0, 0), (0, 0)):
        return _pointwise(x[:, :: stride[0], :: stride[1]], kernel[0, 0])
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        stride,
        pads,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@jax.custom_vjp
def _pointwise(x, kernel):
    return jnp.einsum("bhwi,io->bhwo", x, kernel)


def _pointwise_forward(x, kernel):
    return _pointwise(x, kernel), (x, kernel)


def _pointwise_backward(saved, g):
    """Two matrix products, the kernel's over rows of pixels.

    Contracted over batch, rows and columns apart, XLA's CPU back end transposes g inside the fusion that computes it:
    512x128 over 4x24x32 pixels took 17 ms, against 5 ms for the same sum over one axis.
    """
    x, kernel = saved

    def one_axis(x: Array, g: Array) -> Array:
        return jnp.einsum("ni,no->io", x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1]))

    def plain(x: Array, g: Array) -> Array:
        return jnp.einsum("bhwi,bhwo->io", x, g)

    dx = jnp.einsum("bhwo,io->bhwi", g, kernel)
    return dx, jax.lax.platform_dependent(x, g, cpu=one_axis, default=plain)


_pointwise.defvjp(_pointwise_forward, _pointwise_backward)
