"""Arguments of a convolution and of a transposed one: what they mean, and what is said of wrong ones."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops.geometry import Geometry, Padding, image_geometry, pad_pairs, per_axis
from segjax.types import Array


def conv_geometry(
    size: Sequence[int],
    kernel_shape: Sequence[int],
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
    groups: int,
) -> Geometry:
    """Reads the arguments of a convolution in one or two dimensions.

    Args:
        size: input pixels per axis.
        kernel_shape: (*window, Cin / groups, Cout).
        stride: as in `ops.conv`.
        padding: as in `ops.conv`.
        dilation: as in `ops.conv`.
        groups: as in `ops.conv`.

    Returns:
        the geometry in two dimensions.

    Raises:
        ValueError: an argument out of range, outputs that groups do not divide, a kernel larger than the padded input.
    """
    rank, window = len(size), tuple(kernel_shape[:-2])
    check_groups(groups, kernel_shape[-1])
    stride, dilation = per_axis("stride", stride, rank), per_axis("dilation", dilation, rank)
    pads = pad_pairs(padding, size, window, stride, dilation)
    return image_geometry(size, window, stride, pads, dilation, groups)


def transpose_geometry(
    size: Sequence[int],
    window: Sequence[int],
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
    groups: int,
    output_padding: int | Sequence[int],
    output_size: int | Sequence[int] | None,
) -> Geometry:
    """Finds the convolution that a transposed convolution is the transpose of, from the size of that one's output.

    Stride s and window k make floor((n + low + high - d (k - 1) - 1) / s) + 1 outputs of n inputs, so s consecutive
    n give as many: n = s (size - 1) + d (k - 1) + 1 - low - high + output_padding for output_padding 0, ..., s - 1.

    Args:
        size: outputs of the convolution per axis.
        window: kernel taps per axis.
        stride: as in `ops.conv_transpose`.
        padding: as in `ops.conv_transpose`.
        dilation: as in `ops.conv_transpose`.
        groups: as in `ops.conv_transpose`.
        output_padding: as in `ops.conv_transpose`.
        output_size: as in `ops.conv_transpose`.

    Returns:
        the convolution's geometry, in two dimensions.

    Raises:
        ValueError: an argument out of range, or no such convolution.

    Source:
        Dumoulin & Visin 2016, relationship 14, https://arxiv.org/abs/1603.07285.
    """
    rank = len(size)
    stride, dilation = per_axis("stride", stride, rank), per_axis("dilation", dilation, rank)
    extra = per_axis("output_padding", output_padding, rank, minimum=0)
    if output_size is not None:
        output_size = per_axis("output_size", output_size, rank)
        if any(extra):
            raise ValueError(f"output_padding={extra} and output_size={output_size}: expected one of the two")
    if 0 in size:
        raise ValueError(f"y has {tuple(size)} pixels: expected at least one per axis")
    if padding == "same":
        if any(extra):
            raise ValueError(f"output_padding={extra} with padding='same': expected the size itself, as output_size")
        wanted = output_size or tuple(m * s for m, s in zip(size, stride, strict=True))
        least = [(m - 1) * s + 1 for m, s in zip(size, stride, strict=True)]
        pads = pad_pairs(padding, wanted, window, stride, dilation)
    else:
        pads = pad_pairs(padding, size, window, stride, dilation)
        least = [
            s * (m - 1) + d * (k - 1) + 1 - low - high
            for m, k, s, (low, high), d in zip(size, window, stride, pads, dilation, strict=True)
        ]
        _check_output_padding(extra, stride)
        wanted = output_size or tuple(n + e for n, e in zip(least, extra, strict=True))
    for axis, (n, first, s) in enumerate(zip(wanted, least, stride, strict=True)):
        most = first + s - 1
        if n < 1 or most < 1:
            raise ValueError(
                f"y of {tuple(size)} pixels, window {tuple(window)}, stride {stride}, padding {pads} and dilation "
                f"{dilation} give {n if output_size is None else most} pixels on axis {axis}: expected at least 1, "
                + (f"as output_padding={1 - first} gives" if most >= 1 else f"as {1 - most} less padding can give")
            )
        if not first <= n <= most:
            raise ValueError(
                f"output_size={tuple(wanted)}: the convolution gives size {tuple(size)} only from {max(first, 1)} to "
                f"{most} pixels on axis {axis}; the nearest valid is {min(max(n, first, 1), most)}"
            )
    return image_geometry(wanted, window, stride, pads, dilation, groups)


def _check_output_padding(extra: Sequence[int], stride: Sequence[int]) -> None:
    if any(e >= s for e, s in zip(extra, stride, strict=True)):
        nearest = tuple(min(e, s - 1) for e, s in zip(extra, stride, strict=True))
        raise ValueError(
            f"output_padding={tuple(extra)} with stride={tuple(stride)}: expected less than the stride, such as "
            f"{nearest}; from a larger input the convolution makes a larger output, so the result would be the "
            "transpose of none"
        )


def check_groups(groups: int, features: int, channels: int = 0) -> None:
    """Checks that groups divide the numbers of output and input channels of a convolution.

    Args:
        groups: runs of channels.
        features: Cout.
        channels: Cin, or 0 where it follows from the kernel.

    Raises:
        ValueError: they do not; the message names the nearest number that does.
    """
    if not hasattr(groups, "__index__") or np.ndim(groups):
        raise ValueError(f"groups={groups!r}: expected an int")
    common = math.gcd(features, channels)
    if groups < 1 or common % groups:
        nearest = min((n for n in range(1, common + 1) if common % n == 0), key=lambda n: abs(n - groups))
        both = f"{channels} input and {features} output channels" if channels else f"{features} output channels"
        raise ValueError(f"groups={groups} with {both}: expected a divisor; the nearest is {nearest}")


def check_pair(name: str, x: Array, kernel: Array) -> None:
    """Checks that an array and a kernel are both of one dimension, or both of two, and of one floating dtype.

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
    if 0 in kernel.shape:
        raise ValueError(f"kernel {kernel.shape}: expected at least one tap, one input and one output")
    dtypes = [jax.dtypes.canonicalize_dtype(array.dtype) for array in (x, kernel)]
    if dtypes[0] != dtypes[1] or not jnp.issubdtype(dtypes[0], jnp.floating):
        raise ValueError(f"{name} of {dtypes[0]} with a kernel of {dtypes[1]}: expected one floating dtype for both")
