"""The convolution written out as a matrix M: every entry is a kernel tap or zero."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse as jax_sparse

from segjax.ops.conv_geometry import conv_geometry
from segjax.ops.geometry import Geometry, Padding, per_axis
from segjax.types import Array, HostArray


def conv_matrix(
    kernel: Array,
    input_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    sparse: bool = False,
) -> Array | jax_sparse.BCOO:
    """Writes `ops.conv` with this kernel and geometry as a matrix: conv(x).ravel() = M @ x.ravel() for one example.

    Row (i, o) holds kernel[t, c, o] at column (s i + d t - low, c), for each tap t that lies inside the input; a 3x3
    kernel over 4x4 pixels is a 4 x 16 matrix, and its transpose is `ops.conv_transpose`. Differentiable in the kernel.

    Args:
        kernel: [kw, Cin / groups, Cout] or [kh, kw, Cin / groups, Cout].
        input_size: pixels of the input, one number per axis, or one for all.
        stride: as in `ops.conv`.
        padding: as in `ops.conv`.
        dilation: as in `ops.conv`.
        groups: as in `ops.conv`.
        sparse: return a `jax.experimental.sparse.BCOO` with one stored element per tap inside the input.

    Returns:
        [prod(output size) * Cout, prod(input size) * Cin] of the kernel's dtype, both axes in C order of (space,
        channel).

    Raises:
        ValueError: as `ops.conv`, or more rows or columns than an int32 counts.

    Source:
        Dumoulin & Visin 2016, section 4.1, https://arxiv.org/abs/1603.07285.
    """
    rank = kernel.ndim - 2
    if rank not in (1, 2):
        raise ValueError(f"kernel {kernel.shape}: expected [kw, I, O] or [kh, kw, I, O]")
    size = per_axis("input_size", input_size, rank)
    geometry = conv_geometry(size, kernel.shape, stride, padding, dilation, groups)
    if rank == 1:
        kernel = kernel[None]
    return matrix(jnp.asarray(kernel), geometry, sparse=sparse)


def matrix(kernel: Array, geometry: Geometry, *, sparse: bool) -> Array | jax_sparse.BCOO:
    """Writes the matrix of a two-dimensional geometry.

    Args:
        kernel: [kh, kw, Cin / groups, Cout].
        geometry: of the convolution.
        sparse: as in `conv_matrix`.

    Returns:
        [H' W' Cout, H W Cin].

    Raises:
        ValueError: more rows or columns than an int32 counts.
    """
    channels, features = kernel.shape[2] * geometry.groups, kernel.shape[3]
    shape = (int(np.prod(geometry.output)) * features, int(np.prod(geometry.input)) * channels)
    if max(shape) > np.iinfo(np.int32).max:
        raise ValueError(f"a matrix of {shape[0]} x {shape[1]}: expected at most {np.iinfo(np.int32).max} on a side")
    (taps_h, out_h, in_h), (taps_w, out_w, in_w) = (_reads(geometry, axis) for axis in (0, 1))
    data = kernel[taps_h[:, None], taps_w[None, :]]  # [reads of rows, reads of columns, Cin / groups, Cout]
    group = np.arange(features) // (features // geometry.groups)
    channel = group[None, :] * kernel.shape[2] + np.arange(kernel.shape[2])[:, None]
    row_pixel = jnp.asarray(out_h[:, None] * geometry.output[1] + out_w[None, :], jnp.int32)[..., None, None]
    column_pixel = jnp.asarray(in_h[:, None] * geometry.input[1] + in_w[None, :], jnp.int32)[..., None, None]
    rows = jnp.broadcast_to(
        row_pixel * features + np.arange(features, dtype=np.int32)[None, None, None], data.shape
    ).ravel()
    columns = jnp.broadcast_to(column_pixel * channels + channel.astype(np.int32)[None, None], data.shape).ravel()
    if sparse:
        return jax_sparse.BCOO((data.ravel(), jnp.stack([rows, columns], axis=1)), shape=shape, unique_indices=True)
    return jnp.zeros(shape, kernel.dtype).at[rows, columns].set(data.ravel(), unique_indices=True)


def _reads(geometry: Geometry, axis: int) -> tuple[HostArray, HostArray, HostArray]:
    """Every (tap, output, input) of one axis for which the tap of that output reads that input."""
    tap, out = np.divmod(np.arange(geometry.window[axis] * geometry.output[axis]), geometry.output[axis])
    place = geometry.stride[axis] * out + geometry.dilation[axis] * tap - geometry.pads[axis][0]
    inside = (place >= 0) & (place < geometry.input[axis])
    return tap[inside], out[inside], place[inside]
