"""The transposed convolution, the transpose of the convolution's matrix, and the gradient by the kernel."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from segjax.ops.conv_geometry import check_groups, check_pair, conv_geometry, transpose_geometry
from segjax.ops.conv_maps import METHODS, kernel_gradient, transpose
from segjax.ops.geometry import Padding, per_axis
from segjax.types import Array

_transpose = jax.jit(transpose, static_argnums=(2, 3))  # a loop is not compiled anew at each call outside jit


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
    the convolution's output it is the loss's gradient by the kernel; with x and y exchanged in role, that
    of `ops.conv_transpose`.

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
    if rank not in (1, 2) or y.ndim != x.ndim or y.dtype != x.dtype:
        raise ValueError(
            f"x {x.dtype}{x.shape} and y {y.dtype}{y.shape}: expected [B, W, C] or [B, H, W, C] for both, of one dtype"
        )
    check_groups(groups, y.shape[-1], x.shape[-1])
    window = per_axis("window", window, rank)
    shape = (*window, x.shape[-1] // groups, y.shape[-1])
    geometry = conv_geometry(x.shape[1:-1], shape, stride, padding, dilation, groups)
    expected = (x.shape[0], *geometry.output[2 - rank :], y.shape[-1])
    if y.shape != expected:
        raise ValueError(f"y {y.shape}: expected {expected}, the shape of the convolution's output for x {x.shape}")
    if rank == 1:
        return kernel_gradient(x[:, None], y[:, None], geometry)[0]
    return kernel_gradient(x, y, geometry)
