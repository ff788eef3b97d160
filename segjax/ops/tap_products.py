"""The transpose and the kernel gradient of dense convolutions tap by tap, for windows of few taps. For CPUs.

On two cores (4x30x30x128 from and to 4x60x60x128, 3x3 taps, stride 2) the transpose took 6.8 ms against 11 by phases
and 20 with zeros, the kernel gradient 7.7 against 8.6. At stride 1 (2x64x64x128, 3x3 taps) the kernel gradient took 18
ms against XLA's 32, on 2x128x128x64 37 against 76.
"""

import jax
import jax.numpy as jnp

from segjax.ops.geometry import Geometry, Pair, interleave, phases
from segjax.types import Array

_MOST_TAPS = 64


def suits(geometry: Geometry) -> bool:
    """Says whether a geometry has this form: dense, few taps."""
    return geometry.groups == 1 and geometry.window[0] * geometry.window[1] <= _MOST_TAPS


def transpose(y: Array, kernel: Array, geometry: Geometry) -> Array:
    """Applies the transposed convolution: one product makes what every y[i] sends through every tap, then sums.

    Args:
        y: [B, H', W', Cout].
        kernel: [kh, kw, Cin, Cout].
        geometry: of the convolution.

    Returns:
        [B, H, W, Cin].
    """
    wide = jnp.promote_types(y.dtype, jnp.float32)  # sums of bfloat16 products are rounded once, at the end
    # Two plain matrices: as an einsum of five axes the product of a kernel of 411 MB took 175 ms, not 41.
    sent = jnp.matmul(y.reshape(-1, y.shape[3]), kernel.reshape(-1, y.shape[3]).T, preferred_element_type=wide)
    sent = sent.reshape(*y.shape[:3], geometry.window[0] * geometry.window[1], kernel.shape[2])
    quotient = tuple(-(-n // s) for n, s in zip(geometry.input, geometry.stride, strict=True))
    parts = []
    for pairs in phases(geometry.window, geometry.stride, geometry.pads, geometry.dilation):
        part = jnp.zeros((y.shape[0], *quotient, kernel.shape[2]), wide)
        for (u, v), offset in pairs:
            edges = [(-o, q + o - m, 0) for o, q, m in zip(offset, quotient, geometry.output, strict=True)]
            tap = sent[:, :, :, u * geometry.window[1] + v]
            part += jax.lax.pad(tap, jnp.zeros((), wide), [(0, 0, 0), *edges, (0, 0, 0)])
        parts.append(part.astype(y.dtype))
    shape = (y.shape[0], *geometry.input, kernel.shape[2])
    return interleave(parts, geometry.stride, shape)


def kernel_gradient(x: Array, y: Array, geometry: Geometry) -> Array:
    """Sums x times y over all outputs for each tap, one product each.

    Args:
        x: [B, H, W, Cin].
        y: [B, H', W', Cout].
        geometry: of the convolution.

    Returns:
        [kh, kw, Cin, Cout].
    """
    x = padded(x, geometry)
    rows = y.reshape(-1, y.shape[3]).T
    span = [s * (m - 1) + 1 for s, m in zip(geometry.stride, geometry.output, strict=True)]

    def product(tap: Array) -> Array:
        start = [t * d for t, d in zip(jnp.divmod(tap, geometry.window[1]), geometry.dilation, strict=True)]
        pixels = jax.lax.dynamic_slice(x, (0, *start, 0), (x.shape[0], *span, x.shape[3]))
        pixels = pixels[:, :: geometry.stride[0], :: geometry.stride[1]]
        return rows @ pixels.reshape(-1, x.shape[3])

    # In a loop, so that one tap's pixels are in memory at a time: XLA would copy those of all taps of all layers.
    products = jax.lax.map(product, jnp.arange(geometry.window[0] * geometry.window[1]))
    return products.reshape(*geometry.window, y.shape[3], x.shape[3]).transpose(0, 1, 3, 2)


def padded(x: Array, geometry: Geometry) -> Array:
    """Pads images, or crops them, to what the windows span.

    Args:
        x: [B, H, W, C].
        geometry: of the convolution.

    Returns:
        [B, s (H' - 1) + d (kh - 1) + 1, ..., C].
    """
    edges = [
        (low, s * (m - 1) + d * (k - 1) + 1 - low - n, 0)
        for n, k, s, (low, _), d, m in zip(*geometry[:5], geometry.output, strict=True)
    ]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


def seen(x: Array, geometry: Geometry, tap: Pair) -> Array:
    """Takes the pixels that one tap reads.

    Args:
        x: of `padded`.
        geometry: of the convolution.
        tap: its row and column in the window.

    Returns:
        [B, H', W', C].
    """
    start = [t * d for t, d in zip(tap, geometry.dilation, strict=True)]
    stops = (a + s * (m - 1) + 1 for a, s, m in zip(start, geometry.stride, geometry.output, strict=True))
    return jax.lax.slice(x, (0, *start, 0), (x.shape[0], *stops, x.shape[3]), (1, *geometry.stride, 1))
