"""Resizing by one matrix per axis, y = A_h x A_w', whose gradient has the same two transposed."""

import functools
import numbers
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops.geometry import per_axis
from segjax.ops.interpolation import (
    check_method,
    interpolation_matrix,
    matrix_rows,
    nearest_pixels,
    pixel_ratio,
)
from segjax.ops.separable import apply_matrices, select_pixels
from segjax.types import Array


def resize(
    x: Array,
    size: Sequence[int],
    *,
    method: str,
    align_corners: bool = False,
    antialias: bool = False,
    scale: float | Sequence[float] | None = None,
    a: float | None = None,
) -> Array:
    """Resizes images as `torch.nn.functional.interpolate` does.

    Output pixel i reads the input around (i + 0.5) n / m - 0.5, or i (n - 1) / (m - 1) with `align_corners`
    (n input pixels, m output pixels on that axis); the weights are separable and those of `interpolation_matrix`.
    Coordinates and sums are float32, for float64 images float64 (not the coordinates of the nearest methods); the
    result is rounded once.

    Args:
        x: [B, H, W, C], any real dtype for the nearest methods, floating for the others.
        size: (H', W') pixels of the output.
        method: "nearest", "nearest-exact", "bilinear" or "bicubic".
        align_corners: keep corner pixels' centres in place instead of the image's edges (bilinear and bicubic).
        antialias: widen the filter by the shrinking factor (bilinear and bicubic).
        scale: the factor to take coordinates with, in place of m / n, one or one per axis
            (torch's `scale_factor` without `recompute_scale_factor`, which torch's nearest sometimes ignores if the
            size is kept or doubled, depending on the layout).
        a: Keys' parameter of bicubic, often -0.5; None is torch's: -0.75, but -0.5 with `antialias`.

    Returns:
        [B, H', W', C] of x's dtype.

    Raises:
        ValueError: unknown method, a size below 1, a scale <= 0, or options the method does not have, or a
            dtype that it does not take.

    The gradient is the same with both matrices transposed. Reverse mode, twice too, is differentiation's way through
    it (`jax.grad`, `jax.vjp`, `jax.jacrev`; not `jax.jvp`, `jax.jacfwd`).

    Source:
        Keys 1981, "Cubic convolution interpolation for digital image processing", for bicubic.
    """
    if x.ndim != 4 or 0 in x.shape[1:3]:
        raise ValueError(f"resize of shape {x.shape} to size={size!r}: expected [B, H, W, C] with H and W >= 1")
    size = per_axis("size", size, 2)
    check_method(method, align_corners, antialias, a)
    x = jnp.asarray(x)
    if not (method.startswith("nearest") or jnp.issubdtype(x.dtype, jnp.floating)):
        raise ValueError(f"resize of dtype {x.dtype} with method={method!r}: floating expected, or a nearest method")
    return _resize(x, size, _scales(scale), method, align_corners, antialias, a)


def _scales(scale: float | Sequence[float] | None) -> tuple[float | None, ...]:
    scales = tuple(scale) if isinstance(scale, Sequence | np.ndarray) and np.ndim(scale) else (scale, scale)
    legal = all(s is None or (isinstance(s, numbers.Real) and 0 < s < np.inf) for s in scales)
    if len(scales) != 2 or not legal:
        raise ValueError(f"scale={scale!r}: expected a finite factor > 0, or 2 of them")
    return tuple(None if s is None else float(s) for s in scales)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5, 6))
def _resize(x, size, scales, method, align_corners, antialias, a):
    axes = list(zip(size, x.shape[1:3], scales, strict=True))
    if method.startswith("nearest"):
        pixels = (nearest_pixels(np, m, pixel_ratio(np, m, n, False, s), n, method) for m, n, s in axes)
        return select_pixels(x, *pixels)
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    options = {"method": method, "align_corners": align_corners, "antialias": antialias, "a": a, "dtype": dtype}
    return apply_matrices(x, *(interpolation_matrix(m, n, scale=s, **options) for m, n, s in axes))


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
    if x.ndim != 4 or 0 in x.shape[1:3]:
        raise ValueError(f"resize_padded of shape {x.shape}: expected [B, H, W, C] with H and W >= 1")
    padded_size = per_axis("padded_size", padded_size, 2)
    check_method(method, align_corners)
    x = jnp.asarray(x)
    dtype = jnp.float64 if x.dtype == jnp.float64 and "nearest" not in method else jnp.float32
    matrices = (
        matrix_rows(jnp, m, pixel_ratio(jnp, true_size[axis], n, align_corners, None, dtype), n, method, align_corners)
        for axis, (m, n) in enumerate(zip(padded_size, x.shape[1:3], strict=True))
    )
    return apply_matrices(x, *matrices)
