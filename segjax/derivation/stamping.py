"""The transposed convolution as stamping: one picture per value of y, the sum as it grows."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from segjax.derivation import colours, draw, layout
from segjax.derivation.cases import Case
from segjax.derivation.matrix import kernel_picture
from segjax.derivation.text import tap_numbers
from segjax.types import HostArray

MOST_STAMPS = 16
_BLANK = np.uint8((246, 247, 249))
_CUT = np.uint8((226, 227, 231))


def stamping(geometry: Case) -> Image.Image:
    """Draws the transposed convolution as it is summed: each input value stamps the kernel, overlaps add.

    Args:
        geometry: drawn as `fewer_stamps` makes it, at most `MOST_STAMPS` of them.

    Returns:
        the picture.
    """
    small = fewer_stamps(geometry)
    values = np.arange(1, 1 + math.prod(small.output)).reshape(small.output)
    kernel = tap_numbers(small)[..., 0, 0].astype(int)
    each = stamps(small, values, kernel)
    frame = each[0].shape
    inside = tuple(slice(low, low + n) for (low, _), n in zip(small.pads, small.size, strict=True))
    top = max(int(np.sum(each, axis=0)[inside].max()), 1)
    columns = small.output[-1] + 2 * frame[-1]
    cell = int(np.clip((1010 if small.rank == 2 else 2100) // columns, 4, 56))  # two steps in a row, or one
    cards, total = [], np.zeros(frame, int)
    for i, stamp in zip(np.ndindex(small.output), each, strict=True):
        total = total + stamp
        place = ",".join(map(str, i))
        touched = np.zeros(frame, bool)
        touched[_under(small, i)] = True
        chosen = np.zeros(small.output, bool)
        chosen[i] = True
        blank = np.broadcast_to(_BLANK, (*draw.image(values).shape, 3))
        y = draw.cells(draw.words(values), blank, cell, marked=draw.image(chosen))
        panels = [
            layout.titled(y, f"{len(cards) + 1}.  y"),
            layout.titled(_frame(small, stamp, top, cell, touched), f"y[{place}] x kernel"),
            layout.titled(_frame(small, total, top, cell, touched), "sum so far"),
        ]
        cards.append(layout.beside(panels, gap=28))
    across = max(1, (2240 + 72) // (cards[0].width + 72))
    across = -(-len(cards) // -(-len(cards) // across))  # as many in each row
    rows = [layout.beside(cards[i : i + across], gap=72) for i in range(0, len(cards), across)]
    head = [layout.titled(kernel_picture(small), ""), layout.paragraph(_stamping_words(geometry, small), 1060)]
    ends = np.unique(np.linspace(0, top, 6).round())
    bar = draw.scale(colours.ramp(ends, 0, top), [f"{v:.0f}" for v in ends], title="value")
    return layout.framed(layout.below([layout.beside(head, align="middle"), *rows, bar], gap=44))


def stamps(geometry: Case, values: HostArray, kernel: HostArray) -> list[HostArray]:
    """Lays each value of y times the kernel where its window lies, on the input with its padding.

    Args:
        geometry: with one channel.
        values: y, of the output's size.
        kernel: of the window's size.

    Returns:
        one array of the padded input's size per value, in C order; their sum inside the padding is M.T y.
    """
    frame = tuple(n + sum(pads) for n, pads in zip(geometry.size, geometry.pads, strict=True))
    laid = []
    for i in np.ndindex(geometry.output):
        stamp = np.zeros(frame, kernel.dtype)
        stamp[_under(geometry, i)] = values[i] * kernel
        laid.append(stamp)
    return laid


def fewer_stamps(geometry: Case) -> Case:
    """Makes the geometry small enough to draw each of its stamps.

    Args:
        geometry: any.

    Returns:
        the same kernel, stride, padding and dilation with one channel and at most 3x3 outputs (6 in one dimension), or
        as few as an input of one pixel or more gives.
    """
    most, size = 6 if geometry.rank == 1 else 3, []
    for n, s, m in zip(geometry.size, geometry.stride, geometry.output, strict=True):
        size.append(n - s * min(max(m - most, 0), (n - 1) // s))
    return dataclasses.replace(geometry, size=tuple(size), groups=1, channels=1, features=1)


def _stamping_words(geometry: Case, small: Case) -> str:
    words = (
        f"Each value of y multiplies the kernel and stamps it. A step in y is {_steps(small)} in the picture; where "
        "stamps overlap they add."
    )
    if any(map(any, small.pads)):
        words += " The grey border is the convolution's padding: what falls there is cut."
    words += " The last sum" + (" inside it" if any(map(any, small.pads)) else "") + " is M.T y."
    if small.size != geometry.size:
        before, after = ("x".join(map(str, shape)) for shape in (geometry.output, small.output))
        words += f" Drawn for {after} values of y in place of {before}."
    return words


def _steps(geometry: Case) -> str:
    strides = dict.fromkeys(geometry.stride)
    each = [f"{s} pixel{'s' * (s > 1)}" for s in strides]
    return each[0] if len(each) == 1 else f"{each[0]} down and {each[1]} across"


def _frame(small: Case, values: HostArray, top: int, cell: int, marked: HostArray) -> Image.Image:
    """The input with its padding, which is grey."""
    inside = np.zeros(values.shape, bool)
    inside[tuple(slice(low, low + n) for (low, _), n in zip(small.pads, small.size, strict=True))] = True
    values, inside = draw.image(values), draw.image(inside)
    painted = np.where(inside[..., None], colours.ramp(values, 0, top), _CUT)
    return draw.cells(draw.words(values), painted, cell, marked=draw.image(marked))


def _under(small: Case, i: Sequence[int]) -> tuple[slice, ...]:
    """The pixels of the padded input under the taps of output i."""
    return tuple(
        slice(s * a, s * a + d * (k - 1) + 1, d)
        for s, a, d, k in zip(small.stride, i, small.dilation, small.window, strict=True)
    )
