"""Convolutions of wide dilation tap by tap, each on the pixels that it finds inside the image alone. For CPUs.

A tap d t pixels away meets only zeros on a strip of that width. DeepLab's rate 12 on 20x20 pixels leaves 36 % of the
products, rate 36 only those of the middle tap.
"""

import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from segjax.ops.geometry import Geometry, Pair
from segjax.types import Array

_MOST_TAPS = 25
_WORTH = 0.7  # share of the products left up to which slices and sums of their own cost less than the zeros
_Place = tuple[Pair, tuple[slice, ...], tuple[slice, ...]]


def suits(geometry: Geometry) -> bool:
    """Says whether a geometry has this form: dense, dilated, stride 1, few taps, of which many lie outside."""
    fits = geometry.groups == 1 and geometry.stride == (1, 1) and max(geometry.dilation) > 1
    if not fits or math.prod(geometry.window) > _MOST_TAPS:
        return False
    shares = (
        sum(stop - start for start, stop in _inside(geometry, axis)) / (geometry.window[axis] * geometry.output[axis])
        for axis in (0, 1)
    )
    return math.prod(shares) < _WORTH


def convolve(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Cross-correlates x with a kernel.

    Args:
        x: [B, H, W, Cin].
        kernel: [kh, kw, Cin, Cout].
        geometry: of the convolution.

    Returns:
        [B, H', W', Cout].
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)  # sums of bfloat16 products are rounded once, at the end
    y = jnp.zeros((x.shape[0], *geometry.output, kernel.shape[3]), wide)
    for tap, read, written in _places(geometry):
        y += _put(_product(x[:, *read], kernel[tap], wide), written, geometry.output)
    return y.astype(x.dtype)


def transpose(y: Array, kernel: Array, geometry: Geometry) -> Array:
    """Applies the transpose of `convolve`.

    Args:
        y: [B, H', W', Cout].
        kernel: [kh, kw, Cin, Cout].
        geometry: of the convolution.

    Returns:
        [B, H, W, Cin].
    """
    wide = jnp.promote_types(y.dtype, jnp.float32)
    x = jnp.zeros((y.shape[0], *geometry.input, kernel.shape[2]), wide)
    for tap, read, written in _places(geometry):
        x += _put(_product(y[:, *written], kernel[tap].T, wide), read, geometry.input)
    return x.astype(y.dtype)


def kernel_gradient(x: Array, y: Array, geometry: Geometry) -> Array:
    """Sums x times y over all outputs for each tap.

    Args:
        x: [B, H, W, Cin].
        y: [B, H', W', Cout].
        geometry: of the convolution.

    Returns:
        [kh, kw, Cin, Cout].
    """
    products = {
        tap: x[:, *read].reshape(-1, x.shape[3]).T @ y[:, *written].reshape(-1, y.shape[3])
        for tap, read, written in _places(geometry)
    }
    nothing = jnp.zeros((x.shape[3], y.shape[3]), x.dtype)
    taps = itertools.product(*map(range, geometry.window))
    return jnp.stack([products.get(tap, nothing) for tap in taps]).reshape(*geometry.window, *nothing.shape)


def _inside(geometry: Geometry, axis: int) -> list[Pair]:
    """Of each tap of an axis, the outputs [start, stop) for which it lies in the image; stop = start if none."""
    n, m = geometry.input[axis], geometry.output[axis]
    offsets = [geometry.dilation[axis] * t - geometry.pads[axis][0] for t in range(geometry.window[axis])]
    starts = [min(max(0, -offset), m) for offset in offsets]
    return [(start, max(start, min(m, n - offset))) for start, offset in zip(starts, offsets, strict=True)]


def _places(geometry: Geometry) -> Iterator[_Place]:
    """Yields each tap that meets the image: (tap, pixels it reads, outputs it reads them for)."""
    axes = [
        [
            (t, slice(start + d * t - low, stop + d * t - low), slice(start, stop))
            for t, (start, stop) in enumerate(_inside(geometry, axis))
            if stop > start
        ]
        for axis, (d, (low, _)) in enumerate(zip(geometry.dilation, geometry.pads, strict=True))
    ]
    for row, column in itertools.product(*axes):
        yield tuple(zip(row, column, strict=True))


def _product(x: Array, matrix: Array, wide: jnp.dtype) -> Array:
    y = jnp.matmul(x.reshape(-1, x.shape[3]), matrix, preferred_element_type=wide)
    return y.reshape(*x.shape[:3], matrix.shape[1])


def _put(x: Array, place: tuple[slice, ...], size: Pair) -> Array:
    """x at its place among zeros."""
    edges = [(s.start, n - s.stop, 0) for s, n in zip(place, size, strict=True)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
