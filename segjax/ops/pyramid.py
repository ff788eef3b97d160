"""Adaptive maxima, and the spatial pyramid made of them: a vector of one length from an image of any size."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops.average_pool import adaptive_avg_pool, adaptive_bins
from segjax.ops.geometry import per_axis
from segjax.types import Array

REDUCTIONS = ("max", "avg")


def adaptive_max_pool(x: Array, size: int | Sequence[int]) -> Array:
    """Takes maxima over bins [floor(i n / m), ceil((i + 1) n / m)) of each axis, n input and m output pixels.

    The gradient goes to the first pixel in row order that holds the maximum.

    Args:
        x: [B, H, W, C], real.
        size: output pixels per axis; 1 is the global maximum, and more than the input's repeat pixels.

    Returns:
        [B, *size, C] of x's dtype.

    Raises:
        ValueError: a size below 1, or x without pixels.

    Source:
        torch.nn.functional.adaptive_max_pool2d.
    """
    size = per_axis("size", size, 2)
    if x.ndim != 4 or 0 in x.shape[1:3]:
        raise ValueError(f"adaptive_max_pool of shape {x.shape}: expected [B, H, W, C] with pixels")
    batch, height, width, channels = x.shape
    fixed, places, last = jax.lax.stop_gradient(x), [], height * width - 1
    plane = np.arange(height * width, dtype=np.int32).reshape(height, width)
    for top, bottom in adaptive_bins(size[0], height):
        for left, right in adaptive_bins(size[1], width):
            inside = fixed[:, top:bottom, left:right]
            largest = jnp.max(inside, axis=(1, 2), keepdims=True)
            # XLA's own argmax took 34 ms for 4x60x80x128 at levels 1, 2 and 4 on two cores, this way 9.
            place = plane[top:bottom, left:right][None, :, :, None]
            places.append(jnp.min(jnp.where((inside == largest) | (inside != inside), place, last), axis=(1, 2)))
    y = jnp.take_along_axis(x.reshape(batch, height * width, channels), jnp.stack(places, axis=1), axis=1)
    return y.reshape(batch, *size, channels)


def spatial_pyramid_pool(x: Array, levels: Sequence[int], *, reduce: str = "max") -> Array:
    """Pools l x l bins for each level l and strings them together: the length does not depend on the image's size.

    Level l divides an axis of n pixels into bins [floor(i n / l), ceil((i + 1) n / l)), as adaptive pooling does, so
    that every pixel is read. The paper's windows of ceil(n / l) pixels at stride floor(n / l) are the same where l
    divides n; elsewhere they may stop short of the far edge (11 pixels in 4 bins: windows of 3 at stride 2 reach 9).

    Args:
        x: [B, H, W, C], floating; real for "max".
        levels: bins per axis of each level, such as (1, 2, 4); H and W may be below them.
        reduce: "max", the paper's, or "avg".

    Returns:
        [B, sum(l^2) C] of x's dtype: level after level, each in C order of (row, column, channel).

    Raises:
        ValueError: no level or one below 1, an unknown reduction, or x without pixels.

    Source:
        He, Zhang, Ren & Sun 2014, section 2.2, https://arxiv.org/abs/1406.4729 (levels 1, 2, 3, 6 for detection).
    """
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce={reduce!r}: expected one of {', '.join(REDUCTIONS)}")
    levels = tuple(levels)
    if not levels:
        raise ValueError("levels=(): expected at least one number of bins per axis, such as (1, 2, 4)")
    levels = per_axis("levels", levels, len(levels))
    pool = adaptive_max_pool if reduce == "max" else adaptive_avg_pool
    return jnp.concatenate([pool(x, level).reshape(x.shape[0], level * level * x.shape[3]) for level in levels], axis=1)
