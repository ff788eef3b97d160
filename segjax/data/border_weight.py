"""The weight of each pixel's loss in a U-Net: class balance, and the gaps between touching cells.

    w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2))

with d1 and d2 the distances to the nearest and the second nearest cell, so that a network learns the narrow borders
that keep cells apart.

Source: Ronneberger, Fischer & Brox 2015, section 3, equation 2, https://arxiv.org/abs/1505.04597.
"""

import numpy as np
from scipy import ndimage

from segjax.types import HostArray

W0, SIGMA = 10.0, 5.0
_REACH = 6.5  # standard deviations; beyond, the border's term is below 1e-9 w0


def instances(label: HostArray, *, background: int = 0, ignore_label: int = 255) -> HostArray:
    """Numbers the cells of a semantic label: connected components (by edges) of pixels of one foreground class.

    Args:
        label: integers [H, W].
        background: the class between cells; for a set without one, any number that is no class.
        ignore_label: these pixels are part of no cell.
    Returns:
        i32[H, W]: 0 where there is no cell, else 1, 2, ... class by class.
    """
    numbered, count = np.zeros(label.shape, np.int32), 0
    for value in np.unique(label):
        if value not in (background, ignore_label):
            part, found = ndimage.label(label == value)
            numbered += np.where(part > 0, part + count, 0).astype(np.int32)
            count += found
    return numbered


def weight_map(
    label: HostArray,
    cells: HostArray | None = None,
    *,
    w0: float = W0,
    sigma: float = SIGMA,
    background: int = 0,
    ignore_label: int = 255,
) -> HostArray:
    """Weighs the pixels of one image.

    w_c is N / (K n_c) with n_c of the image's N counted pixels in class c and K classes in the image: every class has
    the same sum, and the mean is 1 (the paper names no rule). A distance is from pixel centre to the nearest pixel
    centre of a cell, and 0 inside it. With fewer than two cells the second term is 0.

    Args:
        label: integers [H, W], classes and ignore_label.
        cells: integers [H, W], the number of the instance at each pixel, 0 for none; None: ``instances(label)``.
        w0: of the border's term.
        sigma: its width, pixels.
        background: as ``instances``.
        ignore_label: these pixels have weight 0 and are not counted.
    Returns:
        f32[H, W].
    Raises:
        ValueError: w0 < 0, sigma <= 0, no pixels, or unlike shapes.
    """
    if not (w0 >= 0 and sigma > 0):
        raise ValueError(f"w0={w0}, sigma={sigma}: expected w0 >= 0 and sigma > 0")
    if cells is None:
        cells = instances(label, background=background, ignore_label=ignore_label)
    if cells.shape != label.shape or label.ndim != 2 or label.size == 0:
        raise ValueError(f"label has shape {label.shape}, cells {cells.shape}: expected the same, [H, W] with pixels")
    nearest, second = _two_nearest(cells, int(np.ceil(_REACH * sigma)))
    weight = _balance(label, ignore_label) + w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return np.where(label == ignore_label, 0, weight).astype(np.float32)


def _balance(label: HostArray, ignore_label: int) -> HostArray:
    """w_c of each pixel, f64[H, W]."""
    values, place, counts = np.unique(label, return_inverse=True, return_counts=True)
    counted = values != ignore_label
    factor = counts[counted].sum() / (max(counted.sum(), 1) * counts)
    return factor[place.reshape(label.shape)]


def _two_nearest(cells: HostArray, reach: int) -> tuple[HostArray, HostArray]:
    """Distances f64[H, W] to the nearest and the second nearest cell; infinite where that is beyond ``reach``.

    Each cell's distance is computed in its own box alone, grown by the reach: the time grows with the area of the
    cells, not with their number times the area of the image.
    """
    nearest, second = np.full((2, *cells.shape), np.inf)
    numbers, cells = np.unique(cells, return_inverse=True)
    cells = cells.reshape(nearest.shape) + 1
    boxes = ndimage.find_objects(cells)
    for place in np.flatnonzero(numbers > 0):
        grown = tuple(slice(max(axis.start - reach, 0), axis.stop + reach) for axis in boxes[place])
        distance = ndimage.distance_transform_edt(cells[grown] != place + 1)
        second[grown] = np.minimum(second[grown], np.maximum(nearest[grown], distance))
        nearest[grown] = np.minimum(nearest[grown], distance)
    return nearest, second
