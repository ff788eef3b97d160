"""Four ways to apply the transpose of a convolution's matrix, in two dimensions. All give the same sums.

Output i of the convolution reads through tap t the pixel s i + d t - low. So in the transpose y[i] sends kernel[t] y[i]
to that pixel; the methods differ in who does the adding up.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from segjax.ops import blocked
from segjax.ops.conv_matrix import matrix
from segjax.ops.geometry import Geometry, Pair
from segjax.types import Array

_LARGEST_DENSE = 2**24  # elements of a matrix that is still made dense


def by_matrix(y: Array, kernel: Array, geometry: Geometry) -> Array:
    """Multiplies by the transposed matrix: x = M' y.

    Args:
        y: [B, H', W', Cout].
        kernel: [kh, kw, Cin / groups, Cout].
        geometry: of the convolution.

    Returns:
        [B, H, W, Cin].
    """
    channels = kernel.shape[2] * geometry.groups
    rows, columns = math.prod(geometry.output) * kernel.shape[3], math.prod(geometry.input) * channels
    transposed = matrix(kernel, geometry, sparse=rows * columns > _LARGEST_DENSE).T
    x = transposed @ y.reshape(y.shape[0], rows).T
    return x.T.reshape(y.shape[0], *geometry.input, channels)


def by_stamping(y: Array, kernel: Array, geometry: Geometry) -> Array:
    """Lets every y[i] stamp the kernel, scaled by it, at pixel s i - low; overlaps add.

    One tap of all stamps at a time: pixels d t, d t + s, d t + 2 s, ... of the padded plane. The plane is kept as
    [B, rows / s, s, columns / s, s, C], in which such pixels are a block.

    Args:
        y: [B, H', W', Cout].
        kernel: [kh, kw, Cin / groups, Cout].
        geometry: of the convolution.

    Returns:
        [B, H, W, Cin].
    """
    (height, width), stride, pads, dilation = geometry.input, geometry.stride, geometry.pads, geometry.dilation
    wide = _accumulator(y.dtype)
    planes = [
        max(m + d * (k - 1) // s, -(-(low + n) // s))
        for n, m, k, s, (low, _), d in zip(
            geometry.input, geometry.output, geometry.window, stride, pads, dilation, strict=True
        )
    ]
    channels = kernel.shape[2] * geometry.groups
    plane = jnp.zeros((y.shape[0], planes[0], stride[0], planes[1], stride[1], channels), wide)
    outputs = kernel.shape[3] // geometry.groups
    by_group = y.reshape(*y.shape[:3], geometry.groups, outputs)
    taps = kernel.reshape(-1, kernel.shape[2], geometry.groups, outputs)

    def stamp(tap: Array, plane: Array) -> Array:
        """Adds one tap of all stamps to the plane."""
        u, v = dilation[0] * (tap // geometry.window[1]), dilation[1] * (tap % geometry.window[1])
        start = (0, u // stride[0], u % stride[0], v // stride[1], v % stride[1], 0)
        ink = jnp.einsum("bijgo,cgo->bijgc", by_group, taps[tap], preferred_element_type=wide)
        ink = ink.reshape(ink.shape[0], ink.shape[1], 1, ink.shape[2], 1, channels)
        return jax.lax.dynamic_update_slice(plane, jax.lax.dynamic_slice(plane, start, ink.shape) + ink, start)

    plane = jax.lax.fori_loop(0, len(taps), stamp, plane)
    plane = plane.reshape(y.shape[0], planes[0] * stride[0], planes[1] * stride[1], channels)
    top, left = pads[0][0], pads[1][0]
    return plane[:, top : top + height, left : left + width].astype(y.dtype)


def by_fractional_stride(y: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolves y, with s - 1 zeros between its pixels, with the kernel flipped and its channels exchanged.

    Args:
        y: [B, H', W', Cout].
        kernel: [kh, kw, Cin / groups, Cout].
        geometry: of the convolution.

    Returns:
        [B, H, W, Cin].
    """
    edges = []
    for n, m, k, s, (low, _), d in zip(
        geometry.input, geometry.output, geometry.window, geometry.stride, geometry.pads, geometry.dilation, strict=True
    ):
        before = d * (k - 1) - low
        edges.append((before, n - before + d * (k - 1) - s * (m - 1) - 1))
    return jax.lax.conv_general_dilated(
        y,
        flipped(kernel, geometry.groups),
        (1, 1),
        edges,
        lhs_dilation=geometry.stride,
        rhs_dilation=geometry.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=geometry.groups,
    )


def by_subpixels(y: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolves y, without zeros, once for each of the s * s phases of the output, and interleaves the results.

    Pixels s q + p - low, of phase p, are reached by the taps t with d t = p (mod s) alone. Phases with equally many
    taps share one convolution, as further channels of it; where the stride divides the kernel that is one for all.

    Args:
        y: [B, H', W', Cout].
        kernel: [kh, kw, Cin / groups, Cout].
        geometry: of the convolution.

    Returns:
        [B, H, W, Cin].
    """
    if blocked.divides(geometry):
        return blocked.transpose(y, kernel, geometry)
    plans = [_plan(geometry, axis) for axis in (0, 1)]
    groups, channels = geometry.groups, kernel.shape[2]
    bands = []
    for rows in plans[0].shares:
        parts = [_share(y, kernel, geometry, plans, rows, columns) for columns in plans[1].shares]
        bands.append(jnp.concatenate(parts, axis=5) if len(parts) > 1 else parts[0])
    x = jnp.concatenate(bands, axis=4) if len(bands) > 1 else bands[0]  # [B, rows, columns, groups, s, s, C / groups]
    for axis, plan in zip((4, 5), plans, strict=True):
        order = [phase for share in plan.shares for phase in share.phases]
        if order != sorted(order):
            x = jnp.take(x, jnp.argsort(jnp.asarray(order)), axis=axis)
    x = x.transpose(0, 1, 4, 2, 5, 3, 6)
    x = x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3] * x.shape[4], groups * channels)
    (top, left), (height, width) = (plan.crop for plan in plans), geometry.input
    return x[:, top : top + height, left : left + width]


class _Share(NamedTuple):
    """Phases of one axis that one convolution makes: their taps, and by how much y is shifted."""

    phases: list[int]
    taps: list[list[int]]  # [phase][number], ascending
    shift: int


class _Plan(NamedTuple):
    """One axis: pixels of each phase from first to first + count, of which `crop` are cut off before the output."""

    shares: list[_Share]
    first: int
    count: int
    crop: int
    dilation: int  # of y's pixels between the taps of a phase


def _plan(geometry: Geometry, axis: int) -> _Plan:
    size, window, stride, (low, _), dilation = (field[axis] for field in geometry[:5])
    shares: dict[Pair, _Share] = {}
    for phase in range(stride):
        taps = [t for t in range(window) if dilation * t % stride == phase]
        shift = dilation * taps[0] // stride if taps else 0
        share = shares.setdefault((len(taps), shift), _Share([], [], shift))
        share.phases.append(phase)
        share.taps.append(taps)
    first = low // stride
    count = -(-(low + size) // stride) - first
    return _Plan(list(shares.values()), first, count, low - first * stride, dilation // math.gcd(dilation, stride))


def _share(y: Array, kernel: Array, geometry: Geometry, plans: list[_Plan], rows: _Share, columns: _Share) -> Array:
    """The pixels of some phases, [B, rows, columns, groups, row phases, column phases, Cin / groups]."""
    groups, inputs, outputs = geometry.groups, kernel.shape[2], kernel.shape[3] // geometry.groups
    phases = (len(rows.phases), len(columns.phases))
    pixels = (plans[0].count, plans[1].count)
    if not rows.taps[0] or not columns.taps[0]:
        return jnp.zeros((y.shape[0], *pixels, groups, *phases, inputs), y.dtype)
    part = _taken(_taken(kernel, columns.taps, axis=1), rows.taps, axis=0)
    part = part.reshape(*part.shape[:4], inputs, groups, outputs).transpose(1, 3, 6, 5, 0, 2, 4)
    part = part.reshape(*part.shape[:3], groups * phases[0] * phases[1] * inputs)
    edges = []
    for plan, share, n in zip(plans, (rows, columns), y.shape[1:3], strict=True):
        reach = plan.dilation * (len(share.taps[0]) - 1)
        before = share.shift + reach - plan.first
        edges.append((before, plan.count - n - before + reach))
    x = _dense(y, part, edges, (plans[0].dilation, plans[1].dilation), groups)
    return x.reshape(y.shape[0], *pixels, groups, *phases, inputs)


def _taken(kernel: Array, taps: list[list[int]], axis: int) -> Array:
    """[..., k, ...] to [..., phase, tap in descending order, ...]; the taps of a phase are evenly spaced."""
    slices = []
    for run in taps:
        step = run[1] - run[0] if len(run) > 1 else 1
        slices.append(jnp.flip(jax.lax.slice_in_dim(kernel, run[0], run[-1] + 1, step, axis), axis))
    return jnp.stack(slices, axis)


def _dense(y: Array, kernel: Array, edges: list[Pair], dilation: Pair, groups: int) -> Array:
    if kernel.shape[:2] == (1, 1) and groups == 1 and edges == [(0, 0), (0, 0)]:
        return jnp.einsum("bijo,oc->bijc", y, kernel[0, 0])
    return jax.lax.conv_general_dilated(
        y,
        kernel,
        (1, 1),
        edges,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def flipped(kernel: Array, groups: int) -> Array:
    """Turns a convolution's kernel by 180 degrees and exchanges its channels within each group.

    Args:
        kernel: [kh, kw, Cin / groups, Cout].
        groups: of the channels.

    Returns:
        [kh, kw, Cout / groups, Cin].
    """
    kh, kw, inputs, outputs = kernel.shape
    split = kernel[::-1, ::-1].reshape(kh, kw, inputs, groups, outputs // groups)
    return split.transpose(0, 1, 4, 3, 2).reshape(kh, kw, outputs // groups, groups * inputs)


def _accumulator(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype
