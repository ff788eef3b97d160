"""Pictures of a region on a feature map: the pixels that each rule's bins read, and the errors that follow."""

import numpy as np
from PIL import Image, ImageDraw

from segjax.derivation import colours, layout, regions
from segjax.derivation.layout import FAINT, INK, PAPER, RULE, SMALL, font
from segjax.derivation.regions import Cover
from segjax.types import HostArray

_CELL = 44
_ROWS, _COLUMNS = (4, 14), (7, 16)  # of the map that are drawn
_REGION, _LOST, _LEAKED = (30, 90, 170), (214, 39, 40), (245, 158, 11)


def quantisation(bins: int) -> Image.Image:
    """Draws the region of the example on the map's pixels, with the bins of the three rules.

    Args:
        bins: per axis.

    Returns:
        the picture.
    """
    panels = []
    for cover, words in (
        (regions.truncated(bins), "Corner, side and bin are rounded down: the rule of lectures."),
        (regions.pooled(bins), "Corners go to the nearest pixel, both included; bins round outwards and overlap."),
        (regions.aligned(bins), "Nothing is rounded. Dots are the 2 x 2 samples of each bin."),
    ):
        lost, leaked = regions.lost_and_leaked(cover)
        told = f"lost {lost:,.0f} pixels of the image, leaked in {leaked:,.0f}"
        panels.append(layout.titled(_panel(cover), f"{cover.name}, {bins} x {bins} bins", [words, told]))
    words = (
        f"Squares are pixels of the map, {regions.STRIDE} x {regions.STRIDE} pixels of the image. The blue frame is "
        "the region, thin lines are the bins. Red: inside the region and read by no bin. Orange: read, but outside."
    )
    row = layout.beside(panels, gap=64)
    return layout.framed(layout.below([row, layout.paragraph(words, row.width)], gap=32))


def _panel(cover: Cover) -> Image.Image:
    page = Image.new("RGB", (_CELL * (_COLUMNS[1] - _COLUMNS[0]) + 50, _CELL * (_ROWS[1] - _ROWS[0]) + 44), PAPER)
    draw = ImageDraw.Draw(page)
    x = lambda v: 46 + _CELL * (v - _COLUMNS[0])
    y = lambda v: 40 + _CELL * (v - _ROWS[0])
    box = lambda left, top, right, bottom: (x(left), y(top), x(right), y(bottom))
    left, top, right, bottom = regions.region()
    span = (cover.columns[0][0], cover.rows[0][0], cover.columns[-1][1], cover.rows[-1][1])
    both = (max(left, span[0]), max(top, span[1]), min(right, span[2]), min(bottom, span[3]))
    draw.rectangle(box(left, top, right, bottom), fill=_mixed(_LOST))
    draw.rectangle(box(*span), fill=_mixed(_LEAKED))
    draw.rectangle(box(*both), fill=_mixed(_REGION, 0.12))
    for i in range(_ROWS[0], _ROWS[1] + 1):
        draw.line((x(_COLUMNS[0]), y(i), x(_COLUMNS[1]), y(i)), fill=RULE, width=2)
    for j in range(_COLUMNS[0], _COLUMNS[1] + 1):
        draw.line((x(j), y(_ROWS[0]), x(j), y(_ROWS[1])), fill=RULE, width=2)
    for i in range(*_ROWS):
        draw.text((38, y(i + 0.5)), str(i), fill=FAINT, font=font(SMALL), anchor="rm")
    for j in range(*_COLUMNS):
        draw.text((x(j + 0.5), 34), str(j), fill=FAINT, font=font(SMALL), anchor="ms")
    for a, b in cover.rows:
        for c, d in cover.columns:
            draw.rectangle(box(c, a, d, b), outline=INK, width=2)
            if cover.name == "RoIAlign":
                _samples(draw, box(c, a, d, b))
    draw.rectangle(box(left, top, right, bottom), outline=_REGION, width=5)
    return page


def _samples(draw: ImageDraw.ImageDraw, box: tuple[float, ...]) -> None:
    for s in (0.25, 0.75):
        for t in (0.25, 0.75):
            x, y = box[0] + t * (box[2] - box[0]), box[1] + s * (box[3] - box[1])
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=INK)


def _mixed(colour: tuple[int, int, int], share: float = 0.55) -> tuple[int, ...]:
    """A colour on white paper."""
    return tuple(round(255 + share * (c - 255)) for c in colour)


def errors(found: dict[tuple[str, int], list[regions.Row]]) -> Image.Image:
    """Draws the mean errors as bars, a panel for each map and output size.

    Args:
        found: {(kind of map, bins): rows of `regions.measure`}.

    Returns:
        the picture.
    """
    top = max(row.mean for rows in found.values() for row in rows)
    panels = [
        layout.titled(_bars(rows, top), f"{kind} map, {bins} x {bins} bins: mean error")
        for (kind, bins), rows in found.items()
    ]
    grid = [layout.beside(panels[i : i + 2], gap=64) for i in range(0, len(panels), 2)]
    words = "In units of the map's standard deviation; all bars are drawn to one scale."
    page = layout.below(grid, gap=48)
    return layout.framed(layout.below([page, layout.paragraph(words, page.width)], gap=32))


def _bars(rows: list[regions.Row], top: float) -> Image.Image:
    left, length, step = 480, 420, 40
    page = Image.new("RGB", (left + length + 110, step * len(rows)), PAPER)
    draw = ImageDraw.Draw(page)
    shades: HostArray = colours.ramp(np.array([0.75, 0.75]), 0, 1)
    for i, row in enumerate(rows):
        y, end = step * i + step // 2, left + max(round(length * row.mean / top), 2)
        draw.text((left - 12, y), row.name, fill=INK, font=font(SMALL), anchor="rm")
        fill = _LEAKED if "RoIPool" in row.name else tuple(int(c) for c in shades[0])
        draw.rectangle((left, y - 12, end, y + 12), fill=fill)
        draw.text((end + 10, y), f"{row.mean:.4f}", fill=FAINT, font=font(SMALL), anchor="lm")
    return page
