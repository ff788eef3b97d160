"""The resizing of one axis as a matrix: where each output pixel reads, and with which weights."""

from types import ModuleType

import numpy as np
from numpy.typing import DTypeLike

from segjax.types import Array, HostArray

METHODS = ("nearest", "nearest-exact", "bilinear", "bicubic")
TORCH_A, TORCH_ANTIALIAS_A = -0.75, -0.5


def interpolation_matrix(
    out_size: int,
    in_size: int,
    *,
    method: str,
    align_corners: bool = False,
    antialias: bool = False,
    scale: float | None = None,
    a: float | None = None,
    dtype: DTypeLike = np.float32,
) -> HostArray:
    """Writes the resizing of one axis as a matrix whose rows sum to one.

    Output i reads around s = (i + 1/2) n / m - 1/2, or s = i (n - 1) / (m - 1) with `align_corners` (n inputs, m
    outputs), through pixels past the edge that repeat it:

        nearest         floor(i n / m)
        nearest-exact   floor((i + 1/2) n / m)
        bilinear        w(d) = 1 - |d| at distance d <= 1 from s
        bicubic         w(d) = (a + 2) |d|^3 - (a + 3) |d|^2 + 1 for |d| <= 1, a (|d|^3 - 5 |d|^2 + 8 |d| - 4) up to 2

    With `antialias` w is widened by max(n / m, 1), cut at the edges and divided by its sum.

    Args:
        out_size: m, pixels of the output.
        in_size: n, pixels of the input.
        method: "nearest", "nearest-exact", "bilinear" or "bicubic".
        align_corners: keep corner pixels' centres in place instead of the image's edges (bilinear and bicubic).
        antialias: widen the filter by the shrinking factor (bilinear and bicubic).
        scale: the factor to take coordinates with, in place of m / n.
        a: Keys' parameter of bicubic; None is torch's: -0.75, but -0.5 with `antialias`.
        dtype: float32 or float64, of the coordinates too, as torch takes them from the image's dtype; those of the
            nearest methods are float32 always, so that images and labels of every dtype copy the same pixels.

    Returns:
        dtype[m, n].

    Raises:
        ValueError: unknown method, a size below 1, a scale <= 0, or options the method does not have.

    Source:
        Keys 1981, "Cubic convolution interpolation for digital image processing", equation 15 (a = -1/2).
    """
    check_method(method, align_corners, antialias, a)
    if min(out_size, in_size) < 1 or (scale is not None and not scale > 0):
        raise ValueError(f"out_size={out_size}, in_size={in_size}, scale={scale}: expected sizes >= 1 and a scale > 0")
    if a is None:
        a = TORCH_ANTIALIAS_A if antialias else TORCH_A
    if antialias:
        return _antialias_matrix(out_size, in_size, method, align_corners, scale, a, dtype)
    ratio = pixel_ratio(np, out_size, in_size, align_corners, scale, np.float32 if "nearest" in method else dtype)
    return matrix_rows(np, out_size, ratio, in_size, method, align_corners, a).astype(dtype)


def check_method(method: str, align_corners: bool = False, antialias: bool = False, a: float | None = None) -> None:
    """Checks that a method exists and has the options given.

    Args:
        method: as in `interpolation_matrix`.
        align_corners: as in `interpolation_matrix`.
        antialias: as in `interpolation_matrix`.
        a: as in `interpolation_matrix`.

    Raises:
        ValueError: it does not.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    if method.startswith("nearest") and (align_corners or antialias):
        raise ValueError(f"method={method!r} has no align_corners and no antialias: expected both False")
    if a is not None and method != "bicubic":
        raise ValueError(f"a={a} with method={method!r}: expected None; bicubic alone has a parameter")
    if a is not None and not np.isfinite(a):
        raise ValueError(f"a={a}: expected a finite number")


def pixel_ratio(
    xp: ModuleType,
    out_size: int | Array,
    in_size: int,
    align_corners: bool,
    scale: float | None = None,
    dtype: DTypeLike = np.float32,
) -> Array:
    """Counts the input pixels per output pixel.

    Args:
        xp: numpy, or jax.numpy for a traced `out_size`.
        out_size: pixels of the output.
        in_size: pixels of the input.
        align_corners: as in `interpolation_matrix`.
        scale: as in `interpolation_matrix`.
        dtype: of the arithmetic.

    Returns:
        dtype[], also the dtype of the coordinates that follow from it.
    """
    out = xp.asarray(out_size).astype(dtype)
    if align_corners:
        return xp.where(out > 1, xp.asarray(in_size - 1, dtype) / xp.maximum(out - 1, 1), 0).astype(dtype)
    return xp.asarray(1.0 / scale, dtype) if scale is not None else xp.asarray(in_size, dtype) / out


def nearest_pixels(xp: ModuleType, rows: int, ratio: Array, in_size: int, method: str) -> Array:
    """Finds the input pixel that each output pixel copies.

    Args:
        xp: numpy, or jax.numpy.
        rows: output pixels.
        ratio: input pixels per output pixel.
        in_size: pixels of the input.
        method: "nearest" or "nearest-exact".

    Returns:
        i32[rows].
    """
    offset = xp.asarray(0.5 if method == "nearest-exact" else 0.0, ratio.dtype)
    source = xp.floor((xp.arange(rows, dtype=ratio.dtype) + offset) * ratio)
    return xp.clip(source, 0, in_size - 1).astype(xp.int32)


def matrix_rows(
    xp: ModuleType, rows: int, ratio: Array, in_size: int, method: str, align_corners: bool, a: float = TORCH_A
) -> Array:
    """Writes the first rows of an axis' matrix, which go on past the last output pixel.

    Args:
        xp: numpy, or jax.numpy for a traced ratio.
        rows: number of rows.
        ratio: input pixels per output pixel.
        in_size: pixels of the input.
        method: as in `interpolation_matrix`.
        align_corners: as in `interpolation_matrix`.
        a: as in `interpolation_matrix`.

    Returns:
        [rows, in_size] of the ratio's dtype; rows past the image repeat its last pixel.
    """
    dtype = ratio.dtype
    if method.startswith("nearest"):
        taps = [(nearest_pixels(xp, rows, ratio, in_size, method), xp.ones(rows, dtype))]
    else:
        half, i = xp.asarray(0.5, dtype), xp.arange(rows, dtype=dtype)
        source = i * ratio if align_corners else (i + half) * ratio - half
        if method == "bilinear":
            source = xp.clip(source, 0, in_size - 1)
        floor = xp.floor(source)
        t, first = source - floor, floor.astype(xp.int32)
        if method == "bilinear":
            taps = [(first, 1 - t), (first + 1, t)]
        else:
            taps = [(first + k, _cubic(xp, xp.abs(t - k), a)) for k in (-1, 0, 1, 2)]
    columns = xp.arange(in_size)
    weights = [xp.where(xp.clip(j, 0, in_size - 1)[:, None] == columns[None, :], w[:, None], 0) for j, w in taps]
    return sum(weights).astype(dtype)


def _cubic(xp: ModuleType, distance: Array, a: float) -> Array:
    """Keys' cubic kernel at a distance >= 0 in pixels."""
    d = distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return xp.where(d <= 1, near, xp.where(d < 2, far, 0))


def _antialias_matrix(
    out_size: int, in_size: int, method: str, align_corners: bool, scale: float | None, a: float, dtype: DTypeLike
) -> HostArray:
    """The filter widened by the shrinking factor, cut at the image's edges and normalised (as Pillow does)."""
    ratio = float(pixel_ratio(np, out_size, in_size, align_corners, scale, dtype))
    widening = max(ratio, 1.0)
    centre = ratio * (np.arange(out_size) + 0.5)[:, None]
    support = (1.0 if method == "bilinear" else 2.0) * widening
    j = np.arange(in_size)[None, :]
    inside = (j >= np.trunc(centre - support + 0.5)) & (j < np.trunc(centre + support + 0.5))
    distance = np.abs(j + 0.5 - centre) / widening
    weight = np.maximum(1 - distance, 0) if method == "bilinear" else _cubic(np, distance, a)
    weight = np.where(inside, weight, 0)
    return (weight / weight.sum(axis=1, keepdims=True)).astype(dtype)
