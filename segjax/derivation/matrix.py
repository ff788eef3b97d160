"""Pictures of M, its transpose and the kernel whose taps they hold."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from segjax import ops
from segjax.derivation import colours, draw, layout
from segjax.derivation.cases import Case
from segjax.derivation.text import tap_numbers

MOST_PIXELS = 2000  # rows and columns of M together, up to which it is drawn
_BLANK = np.uint8((246, 247, 249))


def matrices(geometry: Case) -> Image.Image:
    """Draws the kernel, M and M.T, each entry in the colour of its tap and with its number where that fits.

    Args:
        geometry: with at most `MOST_PIXELS` rows and columns of M together.

    Returns:
        the picture.
    """
    numbers = tap_numbers(geometry)
    matrix = np.asarray(ops.conv_matrix(numbers, geometry.size, **geometry.options)).astype(int)
    cell = int(np.clip(2000 // sum(matrix.shape), 1, 56))
    taps = colours.tap_colours(geometry.window).reshape(-1, 3)
    per_tap = numbers.size // len(taps)
    painted = np.where(matrix[..., None] > 0, taps[np.maximum(matrix - 1, 0) // per_tap], _BLANK)
    words = [[str(v) if v else "" for v in line] for line in matrix]
    pixel = "pixel" if geometry.rank == 1 else "pixel (row, column)"
    m = draw.cells(
        words,
        painted,
        cell,
        rows=_places(geometry.output, geometry.features, cell, across=False),
        columns=_places(geometry.size, geometry.channels, cell, across=True),
        row_title="y",
        column_title=f"input {pixel}, x",
    )
    transposed = draw.cells(
        list(zip(*words, strict=True)),
        painted.swapaxes(0, 1),
        cell,
        rows=_places(geometry.size, geometry.channels, cell, across=False),
        columns=_places(geometry.output, geometry.features, cell, across=True),
        row_title="x",
        column_title=f"output {pixel}, y",
    )
    shape = f"{matrix.shape[0]} x {matrix.shape[1]}"
    left = layout.below(
        [
            layout.titled(m, f"M, {shape}:  y = M x is the convolution"),
            layout.beside([kernel_picture(geometry), layout.paragraph(_matrix_words(geometry), 700)], align="middle"),
        ],
        gap=48,
    )
    right = layout.titled(transposed, "M.T:  M.T y is the transposed convolution", width=560)
    return layout.framed(layout.beside([left, right], gap=64))


def kernel_picture(geometry: Case) -> Image.Image:
    """Draws the kernel's taps in their colours, numbered where there is one channel.

    Args:
        geometry: any.

    Returns:
        the picture.
    """
    numbers, taps = tap_numbers(geometry), colours.tap_colours(geometry.window)
    single = geometry.kernel_shape[-2:] == (1, 1)
    words = draw.words(numbers.reshape(geometry.window).astype(int)) if single else _blank(geometry.window)
    cell = int(np.clip(320 // max(geometry.window), 4, 56))
    return layout.titled(draw.cells(words, draw.image(taps, channels=True), cell), "kernel")


def _matrix_words(geometry: Case) -> str:
    words = "Each row of M holds the kernel once, where its window lies; entries without colour are zero."
    if geometry.kernel_shape[-2:] != (1, 1):
        order = f"({'tap' if geometry.rank == 1 else 'row, column'}, input channel, output channel)"
        words += f" Numbers, where they fit, count the kernel's elements in the order {order}."
    return words + " A column of M.T is the same row: one output value stamps the kernel on the input."


def _blank(window: Sequence[int]) -> list[list[str]]:
    return [[""] * window[-1]] * (window[0] if len(window) == 2 else 1)


def _places(size: Sequence[int], channels: int, cell: int, *, across: bool) -> list[str]:
    """Tick labels: the pixel, at its first channel; where they would touch, every nth of a row, or every nth row."""
    longest = ",".join(str(n - 1) for n in size)
    room = layout.text_width(longest, layout.SMALL) + 10 if across else layout.SMALL + 4
    least, row = -(-room // (cell * channels)), size[-1]
    every = next((n for n in range(least, row + 1) if row % n == 0), -(-least // row) * row)
    labels = [""] * (math.prod(size) * channels)
    for number, pixel in enumerate(np.ndindex(tuple(size))):
        if number % every == 0:
            labels[number * channels] = ",".join(map(str, pixel))
    return labels
