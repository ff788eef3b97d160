"""Grids of numbered cells with axes, and colour scales."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from segjax.derivation.layout import FAINT, INK, PAPER, RULE, SMALL, TEXT, font, text_width
from segjax.types import HostArray

_MARK = (214, 39, 40)
_FINE = 10  # pixels of a cell below which it has neither outline nor number


def image(values: HostArray, *, channels: bool = False) -> HostArray:
    """Makes an image of one row of a signal, and leaves an image as it is.

    Args:
        values: [W] or [H, W], with an axis of channels behind if so said.
        channels: whether there is one.

    Returns:
        [H, W], or [H, W, C].
    """
    return values[None] if values.ndim == 1 + channels else values


def words(values: HostArray, *, zeros: bool = False) -> list[list[str]]:
    """Writes numbers as the words of cells.

    Args:
        values: integers [W] or [H, W].
        zeros: whether 0 is written.

    Returns:
        [H][W].
    """
    return [[str(v) if v or zeros else "" for v in line] for line in image(values)]


def cells(
    words: Sequence[Sequence[str]],
    colours: HostArray,
    cell: int,
    *,
    marked: HostArray | None = None,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    row_title: str = "",
    column_title: str = "",
) -> Image.Image:
    """Draws a grid of coloured cells with a word in each, ticks and axis titles.

    Args:
        words: [H][W], "" for none; left out throughout where the longest does not fit.
        colours: u8[H, W, 3].
        cell: pixels of a side.
        marked: bool[H, W], cells with a bold outline.
        rows: H tick labels at the left, "" for none.
        columns: W tick labels at the top, "" for none.
        row_title: above the row ticks' corner, at the left.
        column_title: above the column ticks.

    Returns:
        the picture.
    """
    height, width = colours.shape[:2]
    size = _fitting([word for line in words for word in line], cell)
    left = max((text_width(label, SMALL) for label in rows), default=0) + (10 if rows else 0)
    left = max(left, text_width(row_title, SMALL) + 12 if row_title else 0)
    top = (SMALL + 10 if columns else 0) + (SMALL + 10 if column_title else 0)
    overhang = max((text_width(label, SMALL) for label in columns[-1:]), default=0) // 2
    wide = max(width * cell + 3 + overhang, text_width(column_title, SMALL) + 2)
    page = Image.new("RGB", (left + wide, top + height * cell + 3), PAPER)
    draw = ImageDraw.Draw(page)
    line = 2 if cell >= 24 else 1
    if cell < _FINE:
        dots = colours.repeat(cell, axis=0).repeat(cell, axis=1)
        page.paste(Image.fromarray(dots), (left + 1, top + 1))
        draw.rectangle((left, top, left + width * cell + 1, top + height * cell + 1), outline=RULE)
    for i, j in np.ndindex(height, width) if cell >= _FINE else ():
        x, y = left + j * cell, top + i * cell
        colour = tuple(int(c) for c in colours[i, j])
        draw.rectangle((x, y, x + cell, y + cell), fill=colour, outline=RULE, width=line)
        if size and words[i][j]:
            draw.text((x + cell / 2, y + cell / 2), words[i][j], fill=_ink(colour), font=font(size), anchor="mm")
    if marked is not None:
        _outline(draw, marked, left, top, cell)
    _ticks(draw, rows, columns, left, top, cell)
    if column_title:
        draw.text((left, 0), column_title, fill=FAINT, font=font(SMALL))
    if row_title:
        draw.text((0, top - SMALL - 8 if columns else 0), row_title, fill=FAINT, font=font(SMALL))
    return page


def scale(colours: HostArray, labels: Sequence[str], *, title: str = "", cell: int = 44) -> Image.Image:
    """Draws a colour scale as a row of chips with a label below each.

    Args:
        colours: u8[n, 3].
        labels: n words.
        title: before the chips.
        cell: pixels of a chip's height.

    Returns:
        the picture.
    """
    wide = max(cell, *(text_width(label, SMALL) + 12 for label in labels))
    left = text_width(title, SMALL) + 16 if title else 0
    page = Image.new("RGB", (left + wide * len(labels) + 2, cell + SMALL + 14), PAPER)
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((0, cell / 2), title, fill=FAINT, font=font(SMALL), anchor="lm")
    for i, (colour, label) in enumerate(zip(colours, labels, strict=True)):
        box = (left + i * wide, 0, left + (i + 1) * wide, cell)
        draw.rectangle(box, fill=tuple(int(c) for c in colour), outline=RULE, width=2)
        draw.text((left + (i + 0.5) * wide, cell + 8), label, fill=FAINT, font=font(SMALL), anchor="mt")
    return page


def _fitting(words: Sequence[str], cell: int) -> int:
    """The largest size at which every word fits a cell; 0 if none can be read."""
    longest = max(words, key=len, default="")
    sizes = range(min(TEXT, round(0.5 * cell)), 10, -1) if cell >= _FINE else ()
    return next((size for size in sizes if text_width(longest, size) <= 0.92 * cell), 0)


def _outline(draw: ImageDraw.ImageDraw, marked: HostArray, left: int, top: int, cell: int) -> None:
    """A bold line wherever a marked cell meets one that is not."""
    around = np.pad(marked, 1)
    width = 4 if cell >= 24 else 2
    for i, j in np.argwhere(marked):
        x, y = left + int(j) * cell, top + int(i) * cell
        sides = {
            (x, y, x + cell, y): around[i, j + 1],
            (x, y + cell, x + cell, y + cell): around[i + 2, j + 1],
            (x, y, x, y + cell): around[i + 1, j],
            (x + cell, y, x + cell, y + cell): around[i + 1, j + 2],
        }
        for side, neighbour in sides.items():
            if not neighbour:
                draw.line(side, fill=_MARK, width=width)


def _ticks(
    draw: ImageDraw.ImageDraw, rows: Sequence[str], columns: Sequence[str], left: int, top: int, cell: int
) -> None:
    for i, label in enumerate(rows):
        draw.text((left - 8, top + (i + 0.5) * cell), label, fill=FAINT, font=font(SMALL), anchor="rm")
    for j, label in enumerate(columns):
        draw.text((left + (j + 0.5) * cell, top - 6), label, fill=FAINT, font=font(SMALL), anchor="ms")


def _ink(colour: tuple[int, ...]) -> tuple[int, int, int]:
    """Black or white, whichever can be read on a colour."""
    return INK if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140 else PAPER
