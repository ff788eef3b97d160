"""The transposed convolution: the transpose of the convolution's matrix, with derivatives of its own.

A convolution is linear in x and in its kernel k, so <conv(x, k), y> is linear in each of x, k and y. Differentiating it
by y, x and k gives three maps:

    conv(x, k)                     by y
    conv_transpose(y, k)           by x
    conv_kernel_gradient(x, y)     by k

The derivatives of each of the three are the other two. Stated so, gradients of every order are plain convolutions:
XLA's own gradient of a dilated convolution's kernel took 1.9 s on two cores where this took 24 ms (4x30x30x128, 4x4
taps, stride 2).
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from segjax.ops import blocked, tap_products
from segjax.ops.conv import check_pair, conv2d
from segjax.ops.geometry import Geometry, Padding, check_groups, conv_geometry, per_axis, transpose_geometry
from segjax.ops.transpose_methods import by_fractional_stride, by_matrix, by_stamping, by_subpixels
from segjax.types import Array

METHODS = ("auto", "matrix", "stamp", "fractional", "subpixel")


def conv_transpose(
    y: Array,
    kernel: Array,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    output_padding: int | Sequence[int] = 0,
    output_size: int | Sequence[int] | None = None,
    method: str = "auto",
) -> Array:
    """Applies the transpose of `ops.conv` with the same kernel and geometry: M' y, M being `ops.conv_matrix`.

    x[r, c] = sum over outputs i and taps t with s i + d t - low = r, and over o, of kernel[t, c, o] y[i, o]. The
    kernel is that of the convolution, not flipped: Cin counts the channels of the result. PyTorch's ConvTranspose2d
    weight [Cout, Cin / groups, kh, kw] is this kernel after transpose(2, 3, 1, 0).

    Args:
        y: [B, W', Cout] or [B, H', W', Cout], floating.
        kernel: [kw, Cin / groups, Cout] or [kh, kw, Cin / groups, Cout], y's dtype.
        stride: of the convolution; here, pixels between stamps.
        padding: of the convolution; here, what is cut off the result. With "same" the result has s pixels for each of
            y's unless `output_size` says otherwise.
        dilation: of the convolution's taps.
        groups: of the convolution's channels.
        output_padding: rows and columns more at the high end, below the stride: s inputs give the same output size.
        output_size: the same choice by the size itself: (H, W), or W.
        method: one sum by five ways: "matrix" (M' y), "stamp" (each y[i] adds its multiple of the kernel),
            "fractional" (zeros between y's pixels, flipped kernel), "subpixel" (a convolution for each phase of the
            result, interleaved), or "auto", the fastest for the platform and the geometry.

    Returns:
        [B, W, Cin] or [B, H, W, Cin], W = s (W' - 1) + d (kw - 1) + 1 - low - high + output_padding.

    Raises:
        ValueError: ranks, dtypes or channels that do not fit, an unknown method, an argument out of range, a result
            without pixels, a size from which the convolution does not give y's; with the nearest valid choice.

    Differentiable in reverse mode, any number of times; the derivatives are `ops.conv` and
    `ops.conv_kernel_gradient`.

    Source:
        Dumoulin & Visin 2016, section 4, https://arxiv.org/abs/1603.07285; Shi et al. 2016, section 3 ("subpixel"),
        https://arxiv.org/abs/1609.05158.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    check_pair("y", y, kernel)
    check_groups(groups, kernel.shape[-1])
    if y.shape[-1] != kernel.shape[-1]:
        raise ValueError(
            f"y {y.shape} with kernel {kernel.shape}: expected {kernel.shape[-1]} channels in y, the kernel's outputs; "
            "a transposed convolution takes the kernel of the convolution, [..., channels of the result, channels of y]"
        )
    y, kernel = jnp.asarray(y), jnp.asarray(kernel)
    geometry = transpose_geometry(
        y.shape[1:-1], kernel.shape[:-2], stride, padding, dilation, groups, output_padding, output_size
    )
    if y.ndim == 3:
        return _transpose(y[:, None], kernel[None], geometry, method)[:, 0]
    return _transpose(y, kernel, geometry, method)


def conv_kernel_gradient(
    x: Array,
    y: Array,
    window: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Array:
    """Differentiates <ops.conv(x, kernel), y> by the kernel.

    The result at tap t is the sum over outputs i of x[s i + d t - low, c] y[i, o]: with y the gradient of a loss by
    the convolution's output it is the loss's gradient by the kernel; with x and y exchanged in rank, that of
    `ops.conv_transpose`.

    Args:
        x: [B, W, Cin] or [B, H, W, Cin], the convolution's input.
        y: [B, W', Cout] or [B, H', W', Cout], of the size of its output.
        window: kernel taps per axis.
        stride: as in `ops.conv`.
        padding: as in `ops.conv`.
        dilation: as in `ops.conv`.
        groups: as in `ops.conv`.

    Returns:
        [kw, Cin / groups, Cout] or [kh, kw, Cin / groups, Cout].

    Raises:
        ValueError: as `ops.conv`, or y of another size than its output.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    rank = x.ndim - 2
    if rank not in (1, 2) or y.ndim != x.ndim or y.dtype != x.dtype or x.shape[-1] % max(groups, 1):
        raise ValueError(
            f"x {x.dtype}{x.shape} and y {y.dtype}{y.shape}: expected [B, W, C] or [B, H, W, C] for both, of one "
            f"dtype, and groups={groups} to divide x's channels"
        )
    window = per_axis("window", window, rank)
    shape = (*window, x.shape[-1] // groups, y.shape[-1])
    geometry = conv_geometry(x.shape[1:-1], shape, stride, padding, dilation, groups)
    expected = (x.shape[0], *geometry.output[2 - rank :], y.shape[-1])
    if y.shape != expected:
        raise ValueError(f"y {y.shape}: expected {expected}, the shape of the convolution's output for x {x.shape}")
    if rank == 1:
        return _kernel_gradient(x[:, None], y[:, None], geometry)[0]
    return _kernel_gradient(x, y, geometry)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _transpose(y: Array, kernel: Array, geometry: Geometry, method: str) -> Array:
    by = {
        "matrix": by_matrix,
        "stamp": by_stamping,
        "fractional": by_fractional_stride,
        "subpixel": by_subpixels,
        "auto": _fastest,
    }
    return by[method](y, kernel, geometry)


def _transpose_forward(y, kernel, geometry, method):
    return _transpose(y, kernel, geometry, method), (y, kernel)


def _transpose_backward(geometry, method, saved, g):
    y, kernel = saved
    return _conv(g, kernel, geometry), _kernel_gradient(g, y, geometry)


_transpose.defvjp(_transpose_forward, _transpose_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: Array, kernel: Array, geometry: Geometry) -> Array:
    if not blocked.divides(geometry):
        return conv2d(x, kernel, geometry)
    return _on_cpu(blocked.convolve, conv2d, geometry)(x, kernel)


def _conv_forward(x, kernel, geometry):
    return _conv(x, kernel, geometry), (x, kernel)


def _conv_backward(geometry, saved, y):
    x, kernel = saved
    return _transpose(y, kernel, geometry, "auto"), _kernel_gradient(x, y, geometry)


_conv.defvjp(_conv_forward, _conv_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _kernel_gradient(x: Array, y: Array, geometry: Geometry) -> Array:
    if blocked.divides(geometry):
        return _on_cpu(blocked.kernel_gradient, _plain_kernel_gradient, geometry)(x, y)
    if tap_products.suits(geometry):
        return _on_cpu(tap_products.kernel_gradient, _plain_kernel_gradient, geometry)(x, y)
    return _plain_kernel_gradient(x, y, geometry)


def _kernel_gradient_forward(x, y, geometry):
    return _kernel_gradient(x, y, geometry), (x, y)


def _kernel_gradient_backward(geometry, saved, kernel):
    x, y = saved
    return _transpose(y, kernel, geometry, "auto"), _conv(x, kernel, geometry)


_kernel_gradient.defvjp(_kernel_gradient_forward, _kernel_gradient_backward)


def _plain_kernel_gradient(x: Array, y: Array, geometry: Geometry) -> Array:
    shape = (*geometry.window, x.shape[3] // geometry.groups, y.shape[3])
    return jax.vjp(lambda kernel: conv2d(x, kernel, geometry), jnp.zeros(shape, x.dtype))[1](y)[0]


def _plain_input_gradient(y: Array, kernel: Array, geometry: Geometry) -> Array:
    shape = (y.shape[0], *geometry.input, kernel.shape[2] * geometry.groups)
    return jax.vjp(lambda x: conv2d(x, kernel, geometry), jnp.zeros(shape, y.dtype))[1](y)[0]


def _fastest(y: Array, kernel: Array, geometry: Geometry) -> Array:
    """On a CPU a form without zeros; elsewhere the fractional one, which XLA hands to the library as a gradient."""
    if geometry.groups > 1 and kernel.shape[2] == 1 and kernel.shape[3] == geometry.groups:
        return _plain_input_gradient(y, kernel, geometry)  # of a depthwise convolution, which has forms of its own
    if geometry.stride == (1, 1):
        return by_fractional_stride(y, kernel, geometry)
    if not blocked.divides(geometry) and tap_products.suits(geometry):
        return _on_cpu(tap_products.transpose, by_fractional_stride, geometry)(y, kernel)
    return _on_cpu(by_subpixels, by_fractional_stride, geometry)(y, kernel)


def _on_cpu(cpu: Callable, default: Callable, geometry: Geometry) -> Callable:
    return functools.partial(
        jax.lax.platform_dependent,
        cpu=functools.partial(cpu, geometry=geometry),
        default=functools.partial(default, geometry=geometry),
    )
