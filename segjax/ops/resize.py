"""Resizing as two matrix products, y = A_h x A_w', whose gradient is two more: no gather, no scatter."""

from collections.abc import Sequence
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from segjax.types import Array, HostArray

METHODS = ("nearest", "nearest-exact", "bilinear", "bicubic")


def resize(
    x: Array,
    size: Sequence[int],
    *,
    method: str,
    align_corners: bool = False,
    antialias: bool = False,
    scale: float | Sequence[float] | None = None,
    a: float = -0.75,
) -> Array:
    """Resizes images as `torch.nn.functional.interpolate` does.

    Output pixel i reads the input around (i + 0.5) n / m - 0.5, or i (n - 1) / (m - 1) with `align_corners`
    (n input pixels, m output pixels on that axis); bilinear and bicubic weights are separable.

    Args:
        x: [B, H, W, C], any real dtype for the nearest methods, floating for the others.
        size: (H', W') pixels of the output.
        method: "nearest", "nearest-exact", "bilinear" or "bicubic".
        align_corners: keep corner pixels' centres in place instead of the image's edges.
        antialias: widen the filter by the shrinking factor (bilinear and bicubic).
        scale: the factor to take coordinates with, in place of m / n, one or one per axis
            (torch's `scale_factor` without `recompute_scale_factor`).
        a: Keys' parameter of bicubic; torch takes -0.75, and -0.5 with `antialias`.

    Returns:
        [B, H', W', C] of x's dtype.

    Raises:
        ValueError: unknown method, a size below 1, or options the method does not have.

    Source:
        Keys 1981, "Cubic convolution interpolation for digital image processing", for bicubic.
    """
    if x.ndim != 4 or len(tuple(size)) != 2 or min(size) < 1 or 0 in x.shape[1:3]:
        raise ValueError(f"resize of shape {x.shape} to size={size!r}: expected [B, H, W, C] to two sizes >= 1")
    scales = tuple(scale) if isinstance(scale, Sequence) else (scale, scale)
    options = {"method": method, "align_corners": align_corners, "antialias": antialias, "a": a}
    if method not in ("nearest", "nearest-exact"):
        rows, columns = (
            interpolation_matrix(m, n, scale=s, **options) for m, n, s in zip(size, x.shape[1:3], scales, strict=True)
        )
        return apply_matrices(x, rows, columns)
    _check(**options)
    for axis, (m, n, s) in enumerate(zip(size, x.shape[1:3], scales, strict=True), start=1):
        x = jnp.take(x, _nearest(np, m, n, method, s), axis=axis)
    return x


def resize_padded(
    x: Array,
    true_size: Array,
    padded_size: Sequence[int],
    *,
    method: str = "bilinear",
    align_corners: bool = False,
) -> Array:
    """Resizes images to a size known only at run time, inside a canvas of fixed size.

    The top left `true_size` part equals `resize(x, true_size)`; the rest of the canvas is unspecified. One
    compilation serves every size up to `padded_size`.

    Args:
        x: [B, H, W, C], floating.
        true_size: i32[2], rows and columns of the output, traced or not.
        padded_size: (H', W') static size of the canvas.
        method: as in `resize`.
        align_corners: as in `resize`.

    Returns:
        [B, H', W', C] of x's dtype.

    Raises:
        ValueError: unknown method or a wrong number of sizes.
    """
    if x.ndim != 4 or len(tuple(padded_size)) != 2:
        raise ValueError(f"resize_padded of {x.shape} to padded_size={padded_size!r}: expected [B, H, W, C] to 2 sizes")
    _check(method, align_corners, antialias=False, a=-0.75)
    rows, columns = (
        _matrix(jnp, m, true_size[axis], x.shape[1 + axis], method, align_corners) for axis, m in enumerate(padded_size)
    )
    return apply_matrices(x, rows, columns)


def interpolation_matrix(
    out_size: int,
    in_size: int,
    *,
    method: str,
    align_corners: bool = False,
    antialias: bool = False,
    scale: float | None = None,
    a: float = -0.75,
) -> HostArray:
    """Writes the resizing of one axis as a matrix whose rows sum to one.

    Args:
        out_size: pixels of the output.
        in_size: pixels of the input.
        method: as in `resize`.
        align_corners: as in `resize`.
        antialias: as in `resize`.
        scale: as in `resize`, of this axis.
        a: as in `resize`.

    Returns:
        f32[out_size, in_size].

    Raises:
        ValueError: unknown method, a size below 1, or options the method does not have.
    """
    _check(method, align_corners, antialias, a)
    if min(out_size, in_size) < 1:
        raise ValueError(f"out_size={out_size}, in_size={in_size}: expected sizes >= 1")
    if antialias:
        return _antialias_matrix(out_size, in_size, method, align_corners, scale, a)
    return _matrix(np, out_size, out_size, in_size, method, align_corners, scale, a)


def apply_matrices(x: Array, rows: Array | HostArray, columns: Array | HostArray) -> Array:
    """Multiplies the height axis of images by one matrix and the width axis by another.

    Args:
        x: [B, H, W, C], floating.
        rows: f32[H', H].
        columns: f32[W', W].

    Returns:
        [B, H', W', C] of x's dtype.

    Raises:
        ValueError: x is not floating.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"dtype {x.dtype}: expected a floating dtype (nearest methods alone take integers)")
    # In float32 on accelerators too: weights rounded to bfloat16 or TF32 would move the image by a part of a pixel.
    product = lambda spec, a, b: jnp.einsum(spec, a, b, precision=jax.lax.Precision.HIGHEST)
    rows, columns = jnp.asarray(rows, jnp.float32), jnp.asarray(columns, jnp.float32)
    tall_first = rows.shape[0] * columns.shape[1] <= columns.shape[0] * rows.shape[1]  # the smaller image in between
    y = x.astype(jnp.float32)
    if tall_first:
        y = product("pw,bowc->bopc", columns, product("oh,bhwc->bowc", rows, y))
    else:
        y = product("oh,bhpc->bopc", rows, product("pw,bhwc->bhpc", columns, y))
    return y.astype(x.dtype)


def _check(method: str, align_corners: bool, antialias: bool, a: float) -> None:
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    if method.startswith("nearest") and (align_corners or antialias):
        raise ValueError(f"method={method!r} has no align_corners and no antialias: expected both False")
    if not np.isfinite(a):
        raise ValueError(f"a={a}: expected a finite number")


def _ratio(xp: ModuleType, out_size: int | Array, in_size: int, align_corners: bool, scale: float | None) -> Array:
    """Input pixels per output pixel, in float32 as torch computes it."""
    if align_corners:
        ratio = xp.float32(in_size - 1) / xp.maximum(out_size - 1, 1).astype(xp.float32)
        return xp.where(out_size > 1, ratio, xp.float32(0))
    if scale is not None:
        return xp.float32(1.0 / scale)
    return xp.float32(in_size) / xp.asarray(out_size).astype(xp.float32)


def _nearest(
    xp: ModuleType,
    rows: int | Array,
    in_size: int,
    method: str,
    scale: float | None,
    out_size: int | Array | None = None,
) -> Array:
    """Index of the input pixel that each output pixel copies."""
    ratio = _ratio(xp, rows if out_size is None else out_size, in_size, False, scale)
    offset = xp.float32(0.5 if method == "nearest-exact" else 0.0)
    source = xp.floor((xp.arange(rows, dtype=xp.float32) + offset) * ratio)
    return xp.clip(source, 0, in_size - 1).astype(xp.int32)


def _matrix(
    xp: ModuleType,
    rows: int,
    out_size: int | Array,
    in_size: int,
    method: str,
    align_corners: bool,
    scale: float | None = None,
    a: float = -0.75,
) -> Array:
    """`rows` rows of the matrix to `out_size`, which may be traced; rows past it repeat the last pixel."""
    if method.startswith("nearest"):
        taps = [(_nearest(xp, rows, in_size, method, scale, out_size), xp.float32(1))]
    else:
        ratio = _ratio(xp, out_size, in_size, align_corners, scale)
        i = xp.arange(rows, dtype=xp.float32)
        source = i * ratio if align_corners else (i + xp.float32(0.5)) * ratio - xp.float32(0.5)
        if method == "bilinear":
            source = xp.clip(source, 0, in_size - 1)
        floor = xp.floor(source)
        t, first = source - floor, floor.astype(xp.int32)
        if method == "bilinear":
            taps = [(first, 1 - t), (first + 1, t)]
        else:
            taps = [(first + k, _cubic(xp, xp.abs(t - k), a)) for k in (-1, 0, 1, 2)]
    columns = xp.arange(in_size)
    weights = [
        xp.where(xp.clip(j, 0, in_size - 1)[:, None] == columns[None, :], xp.broadcast_to(w, j.shape)[:, None], 0)
        for j, w in taps
    ]
    return sum(weights).astype(xp.float32)


def _cubic(xp: ModuleType, distance: Array, a: float) -> Array:
    """Keys' cubic kernel at a distance >= 0 in pixels."""
    d = distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return xp.where(d <= 1, near, xp.where(d < 2, far, 0))


def _antialias_matrix(
    out_size: int, in_size: int, method: str, align_corners: bool, scale: float | None, a: float
) -> HostArray:
    """The filter widened by the shrinking factor, cut at the image's edges and normalised (as Pillow does)."""
    ratio = float(_ratio(np, out_size, in_size, align_corners, scale))
    widening = max(ratio, 1.0)
    centre = ratio * (np.arange(out_size) + 0.5)[:, None]
    support = (1.0 if method == "bilinear" else 2.0) * widening
    j = np.arange(in_size)[None, :]
    inside = (j >= np.trunc(centre - support + 0.5)) & (j < np.trunc(centre + support + 0.5))
    distance = np.abs(j + 0.5 - centre) / widening
    weight = np.maximum(1 - distance, 0) if method == "bilinear" else _cubic(np, distance, a)
    weight = np.where(inside, weight, 0)
    return (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
