"""Precision-recall curves of ``metrics.average_precision`` as pictures. Pillow and NumPy only."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segjax.data.metadata import default_palette
from segjax.inference.visualize import FAINT, INK, PAPER, RULE
from segjax.types import HostArray, InputError

_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 300, 44, 52  # pixels around the axes; the legend stands right of them
_ROW = 20  # pixels of a line of the legend
_SMOOTH = 2  # curves are drawn this much larger


def by_threshold(
    scores: Mapping[str, Any], *, category_id: Any = None, size: tuple[int, int] = (480, 800)
) -> HostArray:
    """A curve for each threshold of IoU, mean over the classes or of one, with its AP in the legend.

    Args:
        scores: of ``average_precision.evaluate`` or ``compute``.
        category_id: the class; None: all that have objects.
        size: (H, W), pixels.

    Returns:
        u8[H, W, 3].

    Raises:
        InputError: unknown category_id.
        ValueError: a size too small for axes and legend.
    """
    precision = scores["precision"][:, :, _columns(scores, category_id), 0, -1]
    shades = np.linspace(0, 1, len(precision))[:, None]
    colours = (1 - shades) * (16, 62, 122) + shades * (240, 150, 60)
    curves = [(f"IoU {t:.2f}", row) for t, row in zip(scores["iou_thresholds"], precision, strict=True)]
    who = "all classes" if category_id is None else scores["per_class"][category_id]["name"]
    return _picture(scores, curves, colours.round().astype(np.uint8), who, size)


def by_class(scores: Mapping[str, Any], *, iou: float = 0.5, size: tuple[int, int] = (480, 800)) -> HostArray:
    """A curve for each class at one threshold of IoU, best AP first in the legend.

    Args:
        scores: of ``average_precision.evaluate`` or ``compute``.
        iou: one of its thresholds, 0.50, 0.55 ... 0.95.
        size: (H, W), pixels; classes for which the legend has no room are counted there.

    Returns:
        u8[H, W, 3].

    Raises:
        ValueError: another threshold, or a size too small for axes and legend.
    """
    known = np.asarray(scores["iou_thresholds"])
    at = np.flatnonzero(np.isclose(known, iou))
    if not len(at):
        raise ValueError(f"iou={iou}: expected one of {', '.join(f'{t:.2f}' for t in known)}")
    precision = scores["precision"][at[0], :, :, 0, -1].T
    names = [scores["per_class"][key]["name"] for key in scores["category_ids"]]
    palette = default_palette(len(names) + 1)[1:]
    order = np.argsort(-precision.mean(axis=1), kind="stable")
    curves = [(names[k], precision[k][:, None]) for k in order]
    return _picture(scores, curves, palette[order], f"IoU {iou:.2f}", size)


def _columns(scores: Mapping[str, Any], category_id: Any) -> list[int]:
    if category_id is None:
        return list(range(len(scores["category_ids"])))
    if category_id not in scores["category_ids"]:
        raise InputError(f"category_id={category_id!r}: expected one of {scores['category_ids']}")
    return [scores["category_ids"].index(category_id)]


def _picture(
    scores: Mapping[str, Any],
    curves: Sequence[tuple[str, HostArray]],
    colours: HostArray,
    title: str,
    size: tuple[int, int],
) -> HostArray:
    """Axes, curves of f64[R, K] (mean over classes with objects, those without are -1), legend."""
    height, width = size
    across, down = width - _LEFT - _RIGHT, height - _TOP - _BOTTOM
    if across < 100 or down < 100:
        raise ValueError(f"size={size}: expected at least {(_TOP + _BOTTOM + 100, _LEFT + _RIGHT + 100)}")
    canvas = Image.new("RGB", (_SMOOTH * width, _SMOOTH * height), PAPER)
    draw, text = ImageDraw.Draw(canvas), []
    for tick in np.linspace(0, 1, 6):
        x, y = _LEFT + tick * across, _TOP + (1 - tick) * down
        draw.line([_SMOOTH * n for n in (_LEFT, y, _LEFT + across, y)], RULE, _SMOOTH)
        draw.line([_SMOOTH * n for n in (x, _TOP, x, _TOP + down)], RULE, _SMOOTH)
        text += [((_LEFT - 8, y), f"{tick:.1f}", FAINT, "rm"), ((x, _TOP + down + 8), f"{tick:.1f}", FAINT, "mt")]
    rows = max((down - _ROW) // _ROW, 1)
    for number, ((name, values), colour) in enumerate(zip(curves, colours.tolist(), strict=True)):
        known = (values > -1).all(axis=0)
        mean = values[:, known].mean(axis=1) if known.any() else None
        if mean is not None:
            points = zip(_LEFT + scores["recall_thresholds"] * across, _TOP + (1 - mean) * down, strict=True)
            draw.line([(_SMOOTH * x, _SMOOTH * y) for x, y in points], tuple(colour), 2 * _SMOOTH, joint="curve")
        if number < rows:
            y, x = _TOP + _ROW * number + _ROW // 2, width - _RIGHT + 20
            draw.line([_SMOOTH * n for n in (x, y, x + 18, y)], tuple(colour), 4 * _SMOOTH)
            short = name if len(name) <= 20 else name[:19] + "…"
            text.append(((x + 26, y), f"{short}  {'no objects' if mean is None else f'{mean.mean():.3f}'}", INK, "lm"))
    if len(curves) > rows:
        text.append(((width - _RIGHT + 20, _TOP + _ROW * rows + 10), f"and {len(curves) - rows} more", FAINT, "lm"))
    heading = f"{title}: {scores['iou_type']}, at most {scores['max_dets'][-1]} detections an image and class"
    text += [((_LEFT, 4), heading, INK, "lt"), ((_LEFT + across / 2, height - 8), "recall", INK, "mb")]
    text.append(((8, _TOP - 8), "precision", INK, "lb"))
    picture = canvas.resize((width, height), Image.Resampling.BOX)
    draw = ImageDraw.Draw(picture)
    for place, words, colour, anchor in text:
        draw.text(place, words, colour, ImageFont.load_default(13), anchor)
    return np.asarray(picture)
