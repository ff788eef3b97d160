"""Colours of kernel taps and of numbers."""

import colorsys
from collections.abc import Sequence

import numpy as np

from segjax.types import HostArray

_RAMP = ((255, 255, 255), (219, 233, 246), (158, 202, 225), (82, 156, 204), (24, 100, 170), (8, 48, 107))


def tap_colours(window: Sequence[int]) -> HostArray:
    """Gives each tap of a kernel a colour: the hue tells its row, the lightness its column.

    Args:
        window: taps per axis, one or two axes; in one dimension the hue tells the tap.

    Returns:
        u8[*window, 3].
    """
    rows, columns = (1, *window)[-2:]
    colours = np.zeros((rows, columns, 3))
    for i, j in np.ndindex(rows, columns):
        along = j / max(columns - 1, 1)
        hue = 0.58 + (i / rows if rows > 1 else j / columns)
        colours[i, j] = colorsys.hls_to_rgb(hue % 1, 0.82 - 0.36 * along if rows > 1 else 0.66, 0.62)
    return np.round(255 * colours).astype(np.uint8).reshape(*window, 3)


def ramp(values: HostArray, low: float, high: float) -> HostArray:
    """Colours numbers from white at the low end to dark blue at the high end.

    Args:
        values: any shape.
        low: white.
        high: dark blue.

    Returns:
        u8[*values.shape, 3].
    """
    stops = np.linspace(low, high if high > low else low + 1, len(_RAMP))
    channels = [np.interp(values, stops, [colour[c] for colour in _RAMP]) for c in range(3)]
    return np.round(np.stack(channels, -1)).astype(np.uint8)


def grey(values: HostArray, low: float, high: float) -> HostArray:
    """Colours numbers from black at the low end to white at the high end.

    Args:
        values: any shape.
        low: black.
        high: white.

    Returns:
        u8[*values.shape, 3].
    """
    share = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    return np.repeat(np.round(255 * share).astype(np.uint8)[..., None], 3, axis=-1)
