"""Pictures of labels: colours, overlays, legends, error maps, sheets. Pillow and NumPy only.

Everything takes and returns u8[H, W, 3] RGB arrays. An id outside [0, K), the ignore label among them, is drawn as dark
diagonal hatching, so that it cannot be taken for a class.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segjax.data.metadata import Classes
from segjax.types import HostArray

PAPER, INK, FAINT, RULE = (255, 255, 255), (28, 30, 36), (110, 114, 124), (214, 216, 222)
WRONG, RIGHT = (222, 45, 38), (214, 217, 224)
_HATCH_DARK, _HATCH_LIGHT = (22, 22, 26), (74, 76, 84)
_READABLE = 320  # pixels: the least width of a picture with a legend
_HATCH_PERIOD = 10  # pixels of one diagonal stripe pair


def colourize(label: HostArray, palette: HostArray) -> HostArray:
    """The colour of each pixel's class.

    Args:
        label: integers [H, W].
        palette: u8[K, 3].

    Returns:
        u8[H, W, 3]; ids outside [0, K) hatched.
    """
    known = (label >= 0) & (label < len(palette))
    if known.all():
        return np.asarray(palette, np.uint8)[label]
    colours = np.asarray(palette, np.uint8)[np.where(known, label, 0)]
    return np.where(known[..., None], colours, _hatching(label.shape))


def overlay(image: HostArray, label: HostArray, palette: HostArray, *, alpha: float = 0.55) -> HostArray:
    """The image tinted by the class of each pixel, with a bright line where classes meet.

    Args:
        image: u8[H, W, 3].
        label: integers [H, W].
        palette: u8[K, 3].
        alpha: share of the class colour, 0 to 1; ids outside [0, K) keep the image, darkened and hatched.

    Returns:
        u8[H, W, 3].

    Raises:
        ValueError: sizes differ, or alpha is outside [0, 1].
    """
    if image.shape[:2] != label.shape:
        raise ValueError(f"label {label.shape} on an image {image.shape}: expected the same height and width")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}: expected 0 to 1")
    # The image in half colour below: its hues must not be read as class colours.
    grey = Image.fromarray(image).convert("L").convert("RGB")
    below = Image.blend(Image.fromarray(image), grey, 0.5)
    mixed = np.array(Image.blend(below, Image.fromarray(colourize(label, palette)), alpha))
    edges = _edges(label)
    mixed[edges] = (0.35 * mixed[edges] + 0.65 * 255).astype(np.uint8)
    return mixed


def error_map(prediction: HostArray, label: HostArray, num_classes: int) -> HostArray:
    """Wrong pixels red, right ones pale, those that count nowhere hatched.

    Args:
        prediction: integers [H, W].
        label: integers [H, W]; outside [0, num_classes) counts nowhere.
        num_classes: K.

    Returns:
        u8[H, W, 3].
    """
    counted = (label >= 0) & (label < num_classes)
    colours = np.where((prediction == label)[..., None], np.uint8(RIGHT), np.uint8(WRONG))
    return np.where(counted[..., None], colours, _hatching(label.shape))


def legend(classes: Classes, *, width: int, label: HostArray | None = None, font_size: int | None = None) -> HostArray:
    """Colour chips with class names, in as many columns as fit.

    Args:
        classes: names and colours.
        width: pixels.
        label: where given, only the classes in it, each with its share of the pixels.
        font_size: pixels; None: by the width.

    Returns:
        u8[h, width, 3]; h follows from the number of classes.
    """
    font_size = font_size or _font_size(width)
    entries = _entries(classes, label)
    text_width = max((_text_width(text, font_size) for _, text in entries), default=0)
    chip, gap = round(1.25 * font_size), round(0.5 * font_size)
    column = chip + gap + text_width + 2 * gap
    columns = max(1, min(len(entries), (width - gap) // column))
    line = round(1.75 * font_size)
    rows = -(-len(entries) // columns)
    page = Image.new("RGB", (width, rows * line + gap), PAPER)
    draw = ImageDraw.Draw(page)
    for i, (colour, text) in enumerate(entries):
        x, y = gap + (i // rows) * ((width - gap) // columns), gap + (i % rows) * line
        box = (x, y, x + chip - 1, y + font_size - 1)
        if colour is None:
            page.paste(Image.fromarray(_hatching((font_size, chip))), (x, y))
        else:
            draw.rectangle(box, fill=colour)
        draw.rectangle(box, outline=tuple(RULE))
        shown = _shortened(text, font_size, (width - gap) // columns - chip - 2 * gap)
        draw.text((x + chip + gap, y + font_size / 2), shown, fill=INK, font=font(font_size), anchor="lm")
    return np.asarray(page)


def with_legend(picture: HostArray, label: HostArray, classes: Classes) -> HostArray:
    """A picture above the legend of the classes in its label; a small picture is enlarged, so that both can be read.

    Args:
        picture: u8[H, W, 3], often of ``overlay``.
        label: integers [H, W].
        classes: names and colours.

    Returns:
        u8[H', W', 3].
    """
    factor = max(1, -(-_READABLE // picture.shape[1]))
    picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.concatenate([picture, legend(classes, width=picture.shape[1], label=label)])


@dataclasses.dataclass(frozen=True)
class Cell:
    """One picture of a sheet and the line below it."""

    picture: HostArray  # u8[H, W, 3], any size
    caption: str = ""


def sheet(
    cells: Sequence[Cell],
    *,
    columns: int,
    classes: Classes | None = None,
    title: str = "",
    headers: Sequence[str] = (),
    cell_width: int = 320,
) -> HostArray:
    """Pictures in a grid on one page, under a title and above a legend of all classes.

    Args:
        cells: the pictures, row by row; each is fitted into a cell, its aspect kept.
        columns: cells of a row.
        classes: where given, their legend is at the foot.
        title: at the top, if any.
        headers: one word above each column, if any.
        cell_width: pixels; the height follows from the median aspect of the pictures.

    Returns:
        u8[H, W, 3].

    Raises:
        ValueError: no cells, or another number of headers than of columns.
    """
    if not cells or (headers and len(headers) != columns):
        raise ValueError(f"{len(cells)} cells, {columns} columns, headers {headers!r}: expected a cell or more")
    margin, gap, font_size = 20, 10, max(12, round(cell_width / 20))
    aspect = float(np.median([cell.picture.shape[0] / cell.picture.shape[1] for cell in cells]))
    cell_height = max(40, round(cell_width * min(max(aspect, 0.3), 2.0)))
    caption = round(1.7 * font_size) if any(cell.caption for cell in cells) else 0
    rows = -(-len(cells) // columns)
    width = 2 * margin + columns * cell_width + (columns - 1) * gap
    top = margin + (round(2.4 * font_size) if title else 0) + (round(1.7 * font_size) if headers else 0)
    foot = legend(classes, width=width - 2 * margin, font_size=font_size) if classes else np.zeros((0, 1, 3), np.uint8)
    height = top + rows * (cell_height + caption + gap) + len(foot) + margin
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    if title:
        text = _shortened(title, round(1.4 * font_size), width - 2 * margin)
        draw.text((margin, margin), text, fill=INK, font=font(round(1.4 * font_size)))
    for i, header in enumerate(headers):
        x = margin + i * (cell_width + gap)
        draw.text((x, top - round(0.5 * font_size)), header, fill=FAINT, font=font(font_size), anchor="ls")
    for i, cell in enumerate(cells):
        x = margin + i % columns * (cell_width + gap)
        y = top + i // columns * (cell_height + caption + gap)
        picture = _fitted(cell.picture, cell_width, cell_height)
        offset = ((cell_width - picture.width) // 2 if not headers else 0, cell_height - picture.height)
        page.paste(picture, (x + offset[0], y + offset[1]))
        if cell.caption:
            text = _shortened(cell.caption, font_size, cell_width)
            draw.text((x, y + cell_height + round(0.35 * font_size)), text, fill=FAINT, font=font(font_size))
    if classes:
        page.paste(Image.fromarray(foot), (margin, height - margin - len(foot)))
    return np.asarray(page)


def comparison(
    pictures: Sequence[Mapping[str, Any]], classes: Classes, *, title: str = "", cell_width: int = 320
) -> HostArray:
    """Image, label, prediction and errors side by side, one example a row: what the loop shows and stores.

    Args:
        pictures: of ``evaluation.evaluate(collect=n)``: "image", "label", "prediction", "index".
        classes: names and colours.
        title: at the top, if any.
        cell_width: pixels.

    Returns:
        u8[H, W, 3].

    Raises:
        ValueError: no pictures.
    """
    cells = []
    for picture in pictures:
        label, prediction = picture["label"], picture["prediction"]
        image = np.asarray(Image.fromarray(picture["image"]).resize(label.shape[::-1], Image.Resampling.BICUBIC))
        counted = (label >= 0) & (label < len(classes)) & (label != classes.ignore_label)
        right = np.mean((prediction == label)[counted]) if counted.any() else float("nan")
        label = np.where(counted, label.astype(np.int32), -1)
        cells += [
            Cell(image, f"no. {picture['index']}"),
            Cell(colourize(label, classes.palette)),
            Cell(overlay(image, prediction, classes.palette)),
            Cell(error_map(prediction, label, len(classes)), f"{right:.1%} of the pixels right"),
        ]
    headers = ("image", "label", "prediction", "errors (red)")
    return sheet(cells, columns=4, classes=classes, title=title, headers=headers, cell_width=cell_width)


def prediction_pictures(pictures: Sequence[Mapping[str, Any]], classes: Classes) -> list[HostArray]:
    """``comparison`` of each example on a page of its own.

    Args:
        pictures: as ``comparison``.
        classes: names and colours.

    Returns:
        one u8[H, W, 3] per example.
    """
    return [comparison([picture], classes) for picture in pictures]


def save(path: str | os.PathLike, picture: HostArray) -> None:
    """Writes u8[H, W, 3] as a PNG file, in one step: a page that shows it never finds half of it."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.part")
    Image.fromarray(picture).save(temporary, format="PNG", compress_level=4)
    temporary.replace(path)


@functools.lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font of all text in pictures, at a size in pixels."""
    return ImageFont.load_default(size=size)


def _font_size(width: int) -> int:
    return int(np.clip(width / 34, 12, 48))


def _text_width(text: str, size: int) -> int:
    return int(np.ceil(font(size).getlength(text)))


def _shortened(text: str, size: int, width: int) -> str:
    """The text, its middle left out where it is wider than ``width`` pixels."""
    if _text_width(text, size) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        candidate = text[: (kept + 1) // 2] + "..." + text[len(text) - kept // 2 :]
        if _text_width(candidate, size) <= width:
            return candidate
    return text[:1]


def _hatching(size: tuple[int, int]) -> HostArray:
    diagonal = np.add.outer(np.arange(size[0]), np.arange(size[1])) % _HATCH_PERIOD
    return np.where((diagonal < _HATCH_PERIOD // 3)[..., None], np.uint8(_HATCH_LIGHT), np.uint8(_HATCH_DARK))


def _edges(label: HostArray) -> HostArray:
    """bool[H, W]: the pixels whose right or lower neighbour has another id; two pixels thick on large images."""
    edges = np.zeros(label.shape, bool)
    edges[:, :-1] |= label[:, :-1] != label[:, 1:]
    edges[:-1] |= label[:-1] != label[1:]
    if min(label.shape) >= 720:
        edges[:, 1:] |= edges[:, :-1]
        edges[1:] |= edges[:-1]
    return edges


def _entries(classes: Classes, label: HostArray | None) -> list[tuple[tuple[int, ...] | None, str]]:
    """(colour, text) of each line of a legend; colour None is the hatching."""
    colours = [tuple(int(c) for c in colour) for colour in classes.palette]
    if label is None:
        return [*zip(colours, classes.names, strict=True), (None, "ignored")]
    shares = np.bincount(np.where((label >= 0) & (label < len(classes)), label, len(classes)).ravel().astype(np.int64),
                         minlength=len(classes) + 1) / max(label.size, 1)  # fmt: skip
    rows = [*zip(colours, classes.names, strict=True), (None, "none")]
    return [(colour, f"{name}  {_percent(share)}") for (colour, name), share in zip(rows, shares, strict=True) if share]


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "<1%"


def _fitted(picture: HostArray, width: int, height: int) -> Image.Image:
    """The picture scaled to fit: smoothly down, by whole pixels up (labels keep their colours)."""
    image = Image.fromarray(np.ascontiguousarray(picture, dtype=np.uint8))
    factor = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST)
