"""Text, titles and the arrangement of pictures on white paper, with Pillow."""

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Pictures are drawn at twice the size at which a page shows them.
PAPER, INK, FAINT, RULE = (255, 255, 255), (28, 30, 36), (100, 105, 116), (208, 211, 218)
SMALL, TEXT = 24, 28  # pixels


@functools.lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, which is the same on every machine.

    Args:
        size: pixels.

    Returns:
        the font; it holds ASCII and little more.
    """
    return ImageFont.load_default(size=size)


def text_width(words: str, size: int) -> int:
    """Measures a line.

    Args:
        words: one line.
        size: of the font, pixels.

    Returns:
        pixels.
    """
    return int(np.ceil(font(size).getlength(words)))


def paragraph(words: str, width: int) -> Image.Image:
    """Sets text, wrapped.

    Args:
        words: a paragraph.
        width: pixels.

    Returns:
        the picture.
    """
    return _wrapped(words, TEXT, INK, width)


def titled(picture: Image.Image, title: str, lines: Sequence[str] = (), *, width: int = 0) -> Image.Image:
    """Puts a title above a picture and text below it, wrapped to the picture's width.

    Args:
        picture: what is explained.
        title: one line, wrapped where it is too long.
        lines: paragraphs below.
        width: pixels that text may take at least.

    Returns:
        the picture.
    """
    width = max(width, picture.width)
    parts = [_wrapped(title, TEXT, INK, width)] if title else []
    parts.append(picture)
    parts += [_wrapped(line, SMALL, FAINT, width) for line in lines]
    return below(parts, gap=10)


def beside(pictures: Sequence[Image.Image], gap: int = 40, *, align: str = "top") -> Image.Image:
    """Puts pictures in a row.

    Args:
        pictures: from left to right.
        gap: pixels between.
        align: "top", "middle" or "bottom".

    Returns:
        the picture.
    """
    height = max(picture.height for picture in pictures)
    page = Image.new("RGB", (sum(p.width for p in pictures) + gap * (len(pictures) - 1), height), PAPER)
    x, share = 0, {"top": 0.0, "middle": 0.5, "bottom": 1.0}[align]
    for picture in pictures:
        page.paste(picture, (x, round(share * (height - picture.height))))
        x += picture.width + gap
    return page


def below(pictures: Sequence[Image.Image], gap: int = 32) -> Image.Image:
    """Puts pictures in a column.

    Args:
        pictures: from top to bottom.
        gap: pixels between.

    Returns:
        the picture.
    """
    width = max(picture.width for picture in pictures)
    page = Image.new("RGB", (width, sum(p.height for p in pictures) + gap * (len(pictures) - 1)), PAPER)
    y = 0
    for picture in pictures:
        page.paste(picture, (0, y))
        y += picture.height + gap
    return page


def framed(picture: Image.Image, margin: int = 32) -> Image.Image:
    """Puts white space around a picture.

    Args:
        picture: whole.
        margin: pixels.

    Returns:
        the picture.
    """
    page = Image.new("RGB", (picture.width + 2 * margin, picture.height + 2 * margin), PAPER)
    page.paste(picture, (margin, margin))
    return page


def _wrapped(words: str, size: int, colour: tuple[int, int, int], width: int) -> Image.Image:
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    step = round(1.35 * size)
    page = Image.new("RGB", (max(text_width(line, size) for line in lines) + 2, step * len(lines)), PAPER)
    draw = ImageDraw.Draw(page)
    for i, line in enumerate(lines):
        draw.text((0, i * step), line, fill=colour, font=font(size))
    return page
