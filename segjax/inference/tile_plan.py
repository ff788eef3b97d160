"""Where the tiles of an image lie: legal tile sizes, corners, and the weight of each tile's pixels, axis by axis.

All functions are pure, of whole numbers and NumPy arrays; ``tiling`` runs the model over what they plan.
"""

from collections.abc import Callable

import numpy as np

from segjax.models.unet import Sizes
from segjax.types import HostArray

WINDOWS = ("cosine", "triangle")
_GRID = 32  # the coarsest stride of the models here: poolings of a tile see pixels grouped as in the whole image


def find_sizes(output_size: Callable[[int], int], size: int) -> Sizes:
    """Solves the sizes of a network from what it says of single ones, next to a size that is legal.

    Args:
        output_size: the pixels of the logits of an image of n pixels; ValueError for a size that is not legal.
        size: a legal size, pixels.
    Returns:
        Sizes whose least is the smallest that is whole steps from ``size`` and has logits for at least one step.
    Raises:
        ValueError: ``size`` is not legal (as ``output_size`` says it), or the logits have not an even margin.
    """
    missing = size - output_size(size)
    if missing < 0 or missing % 2:
        raise ValueError(
            f"an image of {size} pixels has logits of {size - missing}: expected an even margin, 0 or more"
        )

    def legal(n: int) -> bool:
        try:
            return n - output_size(n) == missing
        except ValueError:
            return False

    step = next((n for n in range(1, size + 1) if legal(size + n)), None)
    if step is None:
        raise ValueError(f"no size from {size + 1} to {2 * size} is legal beside {size}")
    return Sizes(size - (size - missing - step) // step * step, step, missing // 2)


def check_tile(tile: int, sizes: Sizes) -> None:
    """Refuses a tile that the network does not take, or whose logits are narrower than one step.

    The corners of tiles are whole steps apart, for only then do their poolings see the pixels that those of the whole
    image see; so a tile must have logits for at least one step.

    Args:
        tile: pixels, margins included.
        sizes: of the network.
    Raises:
        ValueError: names the nearest legal tiles.
    """
    least = sizes.covering(sizes.step)
    below = max((tile - least) // sizes.step * sizes.step + least, least)
    if tile != below:
        near = f"{least}, the smallest" if tile < least else f"{below} and {below + sizes.step}"
        raise ValueError(f"a tile of {tile} pixels is not legal: the nearest legal are {near}")


def exact_corners(size: int, tile: int, sizes: Sizes) -> HostArray:
    """Lays out the tiles of a network with valid convolutions along one axis.

    Args:
        size: pixels of the image, at least 1.
        tile: legal pixels of a tile.
        sizes: of the network.
    Returns:
        i64[n]: the first pixel of the image that tile i's logits are of; whole steps apart, the tiles' logits cover
        the image, and those of the last may go beyond its end.
    """
    output = sizes.output(tile)
    # Two steps where a tile has as many: convolutions that compute 2x2 pixels at a time then group the same ones.
    grid = sizes.step * min(2, output // sizes.step)
    stride = output // grid * grid
    return np.arange(max(-(-(size - output) // stride), 0) + 1) * stride


def blended_corners(size: int, tile: int, overlap: int) -> HostArray:
    """Lays out the tiles of a padded network along one axis.

    Args:
        size: pixels of the image, at least 1.
        tile: pixels of a tile.
        overlap: pixels that neighbours share at least, 0 <= overlap < tile.
    Returns:
        i64[n]: the first pixel of each tile, multiples of 32 (of a smaller power of two where tiles advance by less).
        The last tile goes beyond the image by less than that, or begins at 0.
    Raises:
        ValueError: overlap out of range.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap={overlap}: expected 0 to {tile - 1}, less than the tile of {tile} pixels")
    grid = min(_GRID, 2 ** ((tile - overlap).bit_length() - 1))
    stride = (tile - overlap) // grid * grid
    last = max(-(-(size - tile) // grid), 0) * grid
    return np.append(np.arange(0, last, stride), last)


def blending(corners: HostArray, tile: int, window: str) -> HostArray:
    """Weighs the pixels of overlapping tiles along one axis, such that the weights of every pixel sum to 1.

    With u = (i + 1/2) / t the place of pixel i in a tile of t pixels, a weight is proportional to sin(pi u)^2
    ("cosine") or to min(u, 1 - u) ("triangle").

    Args:
        corners: i64[n] of ``blended_corners``.
        tile: t.
        window: "cosine" or "triangle".
    Returns:
        f32[n, t].
    Raises:
        ValueError: unknown window.
    """
    if window not in WINDOWS:
        raise ValueError(f"window={window!r}: expected one of {', '.join(WINDOWS)}")
    place = (np.arange(tile) + 0.5) / tile
    one = np.sin(np.pi * place) ** 2 if window == "cosine" else np.minimum(place, 1 - place)
    total = np.zeros(corners[-1] + tile)
    for corner in corners:
        total[corner : corner + tile] += one
    return np.stack([one / total[corner : corner + tile] for corner in corners]).astype(np.float32)


def mirrored(start: int, stop: int, size: int) -> HostArray:
    """Reads pixels start .. stop - 1 of an image that is continued by reflection about its outermost pixels.

    Args:
        start: may be negative.
        stop: may exceed ``size``.
        size: pixels of the image, at least 1.
    Returns:
        i64[stop - start], each in [0, size): as NumPy's and jax's pad with mode "reflect".
    """
    period = max(2 * (size - 1), 1)
    place = np.arange(start, stop) % period
    return np.minimum(place, period - place) if size > 1 else np.zeros(stop - start, np.int64)
