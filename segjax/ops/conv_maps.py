"""The three maps of a convolution in two dimensions, each with the other two as its derivatives.

A convolution is linear in x and in its kernel k, so <conv(x, k), y> is linear in each of x, k and y. Differentiating it
by y, x and k gives three maps:

    convolve(x, k)             by y
    transpose(y, k)            by x
    kernel_gradient(x, y)      by k

The derivatives of each of the three are the other two. Stated so, gradients of every order are convolutions without
zeros between pixels: XLA's own gradient of a dilated convolution's kernel took 1.9 s on two cores where this took 24 ms
(4x30x30x128, 4x4 taps, stride 2).

On a CPU the geometries that XLA is slow at take other forms (`cpu_forms`); elsewhere all are XLA's.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from segjax.ops import cpu_forms
from segjax.ops.depthwise import depthwise
from segjax.ops.geometry import Geometry
from segjax.ops.transpose_methods import by_fractional_stride, by_matrix, by_stamping, by_subpixels
from segjax.types import Array

METHODS = ("auto", "matrix", "stamp", "fractional", "subpixel")
_MOST_TAPS = 225  # of a depthwise kernel, which are written out one by one; more are left to XLA
_MOST_GROUPS = 64  # of which each has a product of its own; more would only lengthen the compilation


def convolve(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Cross-correlates images with a kernel: `ops.conv` after its arguments are read.

    Args:
        x: [B, H, W, Cin].
        kernel: [kh, kw, Cin / groups, Cout].
        geometry: of the convolution.

    Returns:
        [B, H', W', Cout].
    """
    if _is_depthwise(kernel.shape, geometry):
        return depthwise(x, kernel, geometry.stride, geometry.pads, geometry.dilation)
    if _is_pointwise(geometry):
        return _pointwise(x[:, :: geometry.stride[0], :: geometry.stride[1]], kernel[0, 0])
    if _is_whole(geometry):
        return _pointwise(x.reshape(x.shape[0], 1, 1, -1), kernel.reshape(-1, kernel.shape[3]))
    return _convolve(x, kernel, geometry)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def transpose(y: Array, kernel: Array, geometry: Geometry, method: str) -> Array:
    """Applies the transpose of `convolve`'s matrix: `ops.conv_transpose` after its arguments are read.

    Args:
        y: [B, H', W', Cout].
        kernel: [kh, kw, Cin / groups, Cout].
        geometry: of the convolution.
        method: one of `METHODS`.

    Returns:
        [B, H, W, Cin].
    """
    by = {
        "matrix": by_matrix,
        "stamp": by_stamping,
        "fractional": by_fractional_stride,
        "subpixel": by_subpixels,
        "auto": _fastest,
    }
    return by[method](y, kernel, geometry)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def kernel_gradient(x: Array, y: Array, geometry: Geometry) -> Array:
    """Differentiates <convolve(x, kernel), y> by the kernel: `ops.conv_kernel_gradient` after its arguments are read.

    Args:
        x: [B, H, W, Cin].
        y: [B, H', W', Cout].
        geometry: of the convolution.

    Returns:
        [kh, kw, Cin / groups, Cout].
    """
    shape = (*geometry.window, x.shape[3] // geometry.groups, y.shape[3])
    if _is_depthwise(shape, geometry) or _is_pointwise(geometry) or _is_whole(geometry):
        # These have gradients of their own.
        return jax.vjp(lambda kernel: convolve(x, kernel, geometry), jnp.zeros(shape, x.dtype))[1](y)[0]
    if form := cpu_forms.kernel_gradient(math.prod(y.shape[:3]), shape, geometry):
        return _on_cpu(form, _lax_kernel_gradient, geometry)(x, y)
    by_groups = geometry.groups <= _MOST_GROUPS if shape[2] > 1 else shape[3] > geometry.groups
    if geometry.groups > 1 and by_groups:
        return _on_cpu(_kernel_gradient_by_groups, _lax_kernel_gradient, geometry)(x, y)
    return _lax_kernel_gradient(x, y, geometry)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: Array, kernel: Array, geometry: Geometry) -> Array:
    if form := cpu_forms.convolve(x.shape[0] * math.prod(geometry.output), kernel.shape, geometry):
        return _on_cpu(form, _lax_convolve, geometry)(x, kernel)
    return _lax_convolve(x, kernel, geometry)


def _convolve_forward(x, kernel, geometry):
    return _convolve(x, kernel, geometry), (x, kernel)


def _convolve_backward(geometry, saved, y):
    x, kernel = saved
    return transpose(y, kernel, geometry, "auto"), kernel_gradient(x, y, geometry)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _transpose_forward(y, kernel, geometry, method):
    return transpose(y, kernel, geometry, method), (y, kernel)


def _transpose_backward(geometry, method, saved, x):
    y, kernel = saved
    return convolve(x, kernel, geometry), kernel_gradient(x, y, geometry)


transpose.defvjp(_transpose_forward, _transpose_backward)


def _kernel_gradient_forward(x, y, geometry):
    return kernel_gradient(x, y, geometry), (x, y)


def _kernel_gradient_backward(geometry, saved, kernel):
    x, y = saved
    return transpose(y, kernel, geometry, "auto"), convolve(x, kernel, geometry)


kernel_gradient.defvjp(_kernel_gradient_forward, _kernel_gradient_backward)


def _is_depthwise(kernel_shape: tuple[int, ...], geometry: Geometry) -> bool:
    one_each = geometry.groups > 1 and kernel_shape[2] == 1 and kernel_shape[3] == geometry.groups
    return one_each and geometry.window[0] * geometry.window[1] <= _MOST_TAPS


def _is_pointwise(geometry: Geometry) -> bool:
    return geometry.groups == 1 and geometry.window == (1, 1) and geometry.pads == ((0, 0), (0, 0))


def _is_whole(geometry: Geometry) -> bool:
    """Whether the one window is the whole image: a fully connected layer."""
    unpadded = geometry.groups == 1 and geometry.pads == ((0, 0), (0, 0)) and geometry.dilation == (1, 1)
    return unpadded and geometry.window == geometry.input


def _lax_convolve(x: Array, kernel: Array, geometry: Geometry) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        geometry.stride,
        geometry.pads,
        rhs_dilation=geometry.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=geometry.groups,
    )


def _lax_kernel_gradient(x: Array, y: Array, geometry: Geometry) -> Array:
    shape = (*geometry.window, x.shape[3] // geometry.groups, y.shape[3])
    kernel = jax.ShapeDtypeStruct(shape, x.dtype)
    return jax.linear_transpose(lambda kernel: _lax_convolve(x, kernel, geometry), kernel)(y)[0]


def _kernel_gradient_by_groups(x: Array, y: Array, geometry: Geometry) -> Array:
    """A gradient for each group, or, of groups of one input, for each of their outputs.

    XLA's own goes through an array of k x k x Cin x Cout: 4x4 taps over 2x64x64x128 in 4 groups took 235 ms, this 24.
    """
    inputs, outputs = x.shape[3] // geometry.groups, y.shape[3] // geometry.groups
    if inputs == 1:
        parts = [kernel_gradient(x, y[..., n::outputs], geometry) for n in range(outputs)]  # depthwise
        return jnp.stack(parts, axis=-1).reshape(*geometry.window, 1, y.shape[3])
    dense = geometry._replace(groups=1)
    parts = []
    for group in range(geometry.groups):
        own = slice(group * inputs, (group + 1) * inputs), slice(group * outputs, (group + 1) * outputs)
        parts.append(kernel_gradient(x[..., own[0]], y[..., own[1]], dense))
    return jnp.concatenate(parts, axis=-1)


def _fastest(y: Array, kernel: Array, geometry: Geometry) -> Array:
    """On a CPU a form without zeros; elsewhere the fractional one, which XLA hands to the library as a gradient."""
    if _is_depthwise(kernel.shape, geometry):  # its gradient has forms of its own
        shape = (y.shape[0], *geometry.input, kernel.shape[3])
        return jax.vjp(lambda x: convolve(x, kernel, geometry), jnp.zeros(shape, y.dtype))[1](y)[0]
    if form := cpu_forms.transpose(math.prod(y.shape[:3]), kernel.shape, geometry):
        return _on_cpu(form, by_fractional_stride, geometry)(y, kernel)
    return by_fractional_stride(y, kernel, geometry)


def _on_cpu(cpu: Callable, default: Callable, geometry: Geometry) -> Callable:
    return functools.partial(
        jax.lax.platform_dependent,
        cpu=functools.partial(cpu, geometry=geometry),
        default=functools.partial(default, geometry=geometry),
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
