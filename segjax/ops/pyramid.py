"""Adaptive maxima, and the spatial pyramid made of them: a vector of one length from an image of any size."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops.average_pool import adaptive_avg_pool, adaptive_bins
from segjax.ops.geometry import per_axis
from segjax.ops.pool import check_ordered
from segjax.types import Array, HostArray

REDUCTIONS = ("max", "avg")


def adaptive_max_pool(x: Array, size: int | Sequence[int]) -> Array:
    """Takes maxima over bins [floor(i n / m), ceil((i + 1) n / m)) of each axis, n input and m output pixels.

    The gradient goes to the first pixel in row order that holds the maximum.

    Args:
        x: [B, H, W, C], integer or floating.
        size: output pixels per axis; 1 is the global maximum, and more than the input's repeat pixels.

    Returns:
        [B, *size, C] of x's dtype.

    Raises:
        ValueError: a size below 1, x without pixels, or x is neither integer nor floating.

    Source:
        torch.nn.functional.adaptive_max_pool2d.
    """
    size = per_axis("size", size, 2)
    if x.ndim != 4 or 0 in x.shape[1:3]:
        raise ValueError(f"adaptive_max_pool of shape {x.shape}: expected [B, H, W, C] with pixels")
    check_ordered("adaptive_max_pool", x)
    batch, height, width, channels = x.shape
    place = np.arange(height * width, dtype=np.int32).reshape(1, height, width, 1)
    largest, place = _largest(jax.lax.stop_gradient(x), place, size[0], 1)
    place = _largest(largest, place, size[1], 2)[1].reshape(batch, size[0] * size[1], channels)
    return jnp.take_along_axis(x.reshape(batch, height * width, channels), place, axis=1).reshape(
        batch, *size, channels
    )


def _largest(x: Array, place: Array | HostArray, size: int, axis: int) -> tuple[Array, Array]:
    """Maximum of each bin of an axis, and the least place that holds it, where each pixel has a place.

    All bins are read with as many taps as the longest has; the others read their last pixel again.
    """
    first, end = np.array(adaptive_bins(size, x.shape[axis])).T[:, :, None]
    taps = np.minimum(first + np.arange((end - first).max()), end - 1).astype(np.int32)
    x, place = (jnp.take(jnp.asarray(z), taps, axis=axis, mode="clip") for z in (x, place))
    largest = jnp.max(x, axis=axis + 1, keepdims=True)
    holds = (x == largest) | (x != x)  # the maximum of a bin with a NaN is NaN
    place = jnp.min(jnp.where(holds, place, np.iinfo(np.int32).max), axis=axis + 1)
    return jnp.squeeze(largest, axis + 1), place


def spatial_pyramid_pool(x: Array, levels: Sequence[int], *, reduce: str = "max") -> Array:
    """Pools l x l bins for each level l and strings them together: the length does not depend on the image's size.

    Level l divides an axis of n pixels into bins [floor(i n / l), ceil((i + 1) n / l)), as adaptive pooling does, so
    that every pixel is read. The paper's windows of ceil(n / l) pixels at stride floor(n / l) are the same where l
    divides n; elsewhere they may stop short of the far edge (11 pixels in 4 bins: windows of 3 at stride 2 reach 9).

    Args:
        x: [B, H, W, C], floating; integer too for "max".
        levels: bins per axis of each level, such as (1, 2, 4); H and W may be below them.
        reduce: "max", the paper's, or "avg".

    Returns:
        [B, sum(l^2) C] of x's dtype: level after level, each in C order of (row, column, channel).

    Raises:
        ValueError: no level or one below 1, an unknown reduction, x without pixels or of another dtype.

    Source:
        He, Zhang, Ren & Sun 2014, section 2.2, https://arxiv.org/abs/1406.4729 (levels 1, 2, 3, 6 for detection).
    """
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce={reduce!r}: expected one of {', '.join(REDUCTIONS)}")
    if np.ndim(levels) != 1 or not len(levels):
        raise ValueError(f"levels={levels!r}: expected at least one number of bins per axis, such as (1, 2, 4)")
    levels = per_axis("levels", levels, len(levels))
    pool = adaptive_max_pool if reduce == "max" else adaptive_avg_pool
    return jnp.concatenate([pool(x, level).reshape(x.shape[0], level * level * x.shape[3]) for level in levels], axis=1)
