"""3x3 convolutions of stride 1 by Winograd's minimal filtering F(2x2, 3x3): 16 products a tile instead of 36. For CPUs.

A tile of 2x2 outputs reads 4x4 pixels d. With the kernel g, y = A' [(G g G') * (B' d B)] A, where * multiplies entry by
entry; summed over input channels, the 16 entries are 16 matrix products over all tiles. Both derivatives are the same
formula read backwards:

    by d:  the same for y, with the kernel turned by 180 degrees
    by g:  G' [sum over tiles of (B' d B) * (A y A')] G

The matrices hold 0, 1, -1 and 1/2 alone, so errors stay those of a plain sum: 2e-6 of the largest output at 64 to 512
channels, in float32. On one core 2x128x128x64 to 64 channels took 24 ms against 29 of XLA's convolution, 2x32x32x256 to
256 channels 19 against 32; each such operation costs half a second to compile, XLA's own next to none.

Source: Lavin & Gray 2016, Fast algorithms for convolutional neural networks, section 4.1,
https://arxiv.org/abs/1509.09308.
"""

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops.geometry import Geometry, Pair
from segjax.types import Array

_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
# Of a whole tile, entry 4 j + i for column j and row i, from the tap 3 a + b: [16, 9].
_OF_TAPS = np.einsum("ia,jb->jiab", _G, _G).reshape(16, 9)


def suits(geometry: Geometry) -> bool:
    """Says whether a geometry has this form: dense, 3x3, stride 1, not dilated."""
    plain = geometry.stride == geometry.dilation == (1, 1)
    return geometry.groups == 1 and geometry.window == (3, 3) and plain


def convolve(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Cross-correlates x with a kernel.

    Args:
        x: [B, H, W, Cin].
        kernel: [3, 3, Cin, Cout].
        geometry: of the convolution.

    Returns:
        [B, H', W', Cout].
    """
    low = tuple(pad for pad, _ in geometry.pads)
    return _filtered(x, _entries(x, kernel, _OF_TAPS), 1, low, geometry.output)


def transpose(y: Array, kernel: Array, geometry: Geometry) -> Array:
    """Applies the transpose of `convolve`.

    Args:
        y: [B, H', W', Cout].
        kernel: [3, 3, Cin, Cout].
        geometry: of the convolution.

    Returns:
        [B, H, W, Cin].
    """
    low = tuple(2 - pad for pad, _ in geometry.pads)
    return _filtered(y, _entries(y, kernel, _OF_TAPS[:, ::-1]), 2, low, geometry.input)


def kernel_gradient(x: Array, y: Array, geometry: Geometry) -> Array:
    """Sums x times y over all outputs for each tap.

    Args:
        x: [B, H, W, Cin].
        y: [B, H', W', Cout].
        geometry: of the convolution.

    Returns:
        [3, 3, Cin, Cout].
    """
    count = _tiles(geometry.output)
    # Tied to y, so that the forward pass does not keep its tiles, four times x, until here.
    tied, y = jax.lax.optimization_barrier((x, y))
    pixels = _of_pixels(tied, tuple(pad for pad, _ in geometry.pads), count)
    pixels, outputs = jax.lax.optimization_barrier((pixels, _of_outputs(y, count)))
    sums = jax.lax.dot_general(pixels, outputs, (((1,), (1,)), ((0,), (0,))))
    taps = jnp.asarray(_OF_TAPS.T, sums.dtype) @ sums.reshape(16, -1)
    return taps.reshape(3, 3, x.shape[3], y.shape[3]).astype(x.dtype)


def _filtered(x: Array, entries: Array, contracted: int, low: Pair, size: Pair) -> Array:
    """The convolution to `size` outputs of x with `low` rows and columns of zeros before it.

    Entries are [16, Cin, Cout], of which axis `contracted` is x's channels.
    """
    count = _tiles(size)
    pixels = jax.lax.optimization_barrier(_of_pixels(x, low, count))
    tiles = jax.lax.dot_general(pixels, entries, (((2,), (contracted,)), ((0,), (0,))))
    batch, channels = x.shape[0], tiles.shape[2]
    a, b, c, d = tiles.reshape(4, 4, batch, *count, channels)
    rows = jnp.stack([a + b + c, b - c - d], axis=4).reshape(4, batch, count[0], 2 * count[1], channels)
    a, b, c, d = jax.lax.optimization_barrier(rows)
    y = jnp.stack([a + b + c, b - c - d], axis=2).reshape(batch, 2 * count[0], 2 * count[1], channels)
    return y[:, : size[0], : size[1]].astype(x.dtype)


def _entries(x: Array, kernel: Array, of_taps: np.ndarray) -> Array:
    """G g G': [16, Cin, Cout]."""
    # Tied to x: not made, and kept, for every layer before the first one runs.
    _, kernel = jax.lax.optimization_barrier((x, kernel))
    kernel = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    return (jnp.asarray(of_taps, kernel.dtype) @ kernel.reshape(9, -1)).reshape(16, *kernel.shape[2:])


def _of_pixels(x: Array, low: Pair, count: Pair) -> Array:
    """B' d B of every tile: [16, B tiles tiles, C]; rows first, in an array of their own."""
    plane = _plane(x, low, count, 2)
    batch, height, width, channels = plane.shape
    a, b, c, d = _four(plane.reshape(batch, height // 2, 2, width, channels), 1)
    rows = jax.lax.optimization_barrier(jnp.stack([a - c, b + c, c - b, b - d]))
    a, b, c, d = _four(rows.reshape(4, batch, count[0], width // 2, 2, channels), 3)
    return jnp.stack([a - c, b + c, c - b, b - d]).reshape(16, -1, channels)


def _of_outputs(y: Array, count: Pair) -> Array:
    """A y A' of every tile: [16, B tiles tiles, C]."""
    plane = _plane(y, (0, 0), count, 0)
    batch, _, width, channels = plane.shape
    pairs = plane.reshape(batch, count[0], 2, width, channels)
    a, b = pairs[:, :, 0], pairs[:, :, 1]
    rows = jax.lax.optimization_barrier(jnp.stack([a, a + b, a - b, -b]))
    pairs = rows.reshape(4, batch, *count, 2, channels)
    a, b = pairs[..., 0, :], pairs[..., 1, :]
    return jnp.stack([a, a + b, a - b, -b]).reshape(16, -1, channels)


def _four(pairs: Array, axis: int) -> list[Array]:
    """The four pixels of each tile along an axis of pairs of pixels, one pair more than tiles."""
    taken = lambda start, place: jax.lax.index_in_dim(
        jax.lax.slice_in_dim(pairs, start, pairs.shape[axis] - 1 + start, axis=axis), place, axis + 1, keepdims=False
    )
    return [taken(start, place) for start in (0, 1) for place in (0, 1)]


def _tiles(size: Pair) -> Pair:
    return tuple(-(-n // 2) for n in size)


def _plane(x: Array, low: Pair, count: Pair, more: int) -> Array:
    """x after `low` zeros on each axis, padded or cropped to 2 `count` + `more` pixels, of at least float32."""
    edges = [(a, 2 * m + more - a - n, 0) for a, m, n in zip(low, count, x.shape[1:3], strict=True)]
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
