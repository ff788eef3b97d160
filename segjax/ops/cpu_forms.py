"""Which form of the three maps of a dense convolution a CPU takes; None: XLA's own, which is as fast.

The bounds are measured: on two cores with AVX-512, float32, jax 0.10.2. `outputs` counts B H' W' everywhere.
"""

import math
from collections.abc import Callable

from segjax.ops import blocked, clipped_taps, tap_products, window_columns, winograd
from segjax.ops.geometry import Geometry
from segjax.ops.transpose_methods import by_subpixels
from segjax.types import Array

Form = Callable[..., Array]
_FEW_CHANNELS = 16  # of the input, with which a product for each tap would be too thin
_WINOGRAD_CHANNELS = 64  # of input and output, below which its sums take longer than the products it saves
_LARGEST = 2**26  # numbers that all taps' products may have in memory at a time
_LARGEST_TILES = 2**25  # the same of the tiles' entries, of which several are there at a time


def convolve(outputs: int, kernel: tuple[int, ...], geometry: Geometry) -> Form | None:
    """Chooses for the convolution.

    Args:
        outputs: B H' W'.
        kernel: its shape, [kh, kw, Cin / groups, Cout].
        geometry: of the convolution.
    """
    if blocked.divides(geometry):
        return blocked.convolve
    if geometry.groups > 1:
        return None
    if clipped_taps.suits(geometry):
        return clipped_taps.convolve
    # However few the outputs: a tile of an image must be computed as the whole image is.
    if _by_winograd(outputs, kernel, geometry):
        return winograd.convolve
    return window_columns.convolve if 2 * outputs <= kernel[3] else None


def transpose(outputs: int, kernel: tuple[int, ...], geometry: Geometry) -> Form | None:
    """Chooses for its transpose; arguments as `convolve`'s.

    XLA's own at stride 1 is a convolution with the kernel transposed beforehand, slowly where the kernel is large.
    """
    if geometry.stride != (1, 1):
        by_taps = tap_products.suits(geometry) and not blocked.divides(geometry)
        return tap_products.transpose if by_taps else by_subpixels
    if clipped_taps.suits(geometry):
        return clipped_taps.transpose
    if _repays(outputs, kernel) and _by_winograd(outputs, kernel, geometry):
        return winograd.transpose
    pays = outputs <= 2 * kernel[3] or 2 * kernel[2] <= kernel[3]
    fits = tap_products.suits(geometry) and outputs * math.prod(kernel[:3]) <= _LARGEST
    return tap_products.transpose if pays and fits else None


def kernel_gradient(outputs: int, kernel: tuple[int, ...], geometry: Geometry) -> Form | None:
    """Chooses for the gradient by the kernel; arguments as `convolve`'s."""
    if blocked.divides(geometry):
        return blocked.kernel_gradient
    if geometry.groups > 1:
        return None
    if clipped_taps.suits(geometry):
        return clipped_taps.kernel_gradient
    if _repays(outputs, kernel) and _by_winograd(outputs, kernel, geometry):
        return winograd.kernel_gradient
    if kernel[2] < _FEW_CHANNELS or 2 * outputs <= kernel[3]:
        return window_columns.kernel_gradient
    return tap_products.kernel_gradient if tap_products.suits(geometry) else None


def _by_winograd(outputs: int, kernel: tuple[int, ...], geometry: Geometry) -> bool:
    """The tiles' entries are 4 times the pixels."""
    fits = min(kernel[2:]) >= _WINOGRAD_CHANNELS and 4 * outputs * max(kernel[2:]) <= _LARGEST_TILES
    return fits and winograd.suits(geometry)


def _repays(outputs: int, kernel: tuple[int, ...]) -> bool:
    """Few outputs do not repay the transformed kernel, 16/9 of it."""
    return 4 * outputs > max(kernel[2:])
