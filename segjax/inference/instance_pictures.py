"""Pictures of objects: contours and tints in a colour of each object's own, names and scores. Pillow and NumPy only.

Everything takes and returns u8[H, W, 3] RGB arrays. Objects are those of ``instances.Detections``, found or true.
"""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from segjax import rle
from segjax.data.metadata import Classes
from segjax.inference import mask_windows, visualize
from segjax.inference.instances import Detections
from segjax.types import BOXES, CLASSES, CROWD, IMAGE, MASKS, HostArray

_LABELLED = 30  # objects; of more, the contours alone and a count
_COLOURS = 200
_MATCH = 0.5  # IoU from which a found object is a true one
_SHOWN = 3  # classes named in a count
_Box = tuple[int, int, int, int]  # x0, y0, x1, y1


def colours(count: int) -> HostArray:
    """A fixed sequence of colours, each as far as can be from all before it.

    Farthest points in Oklab (Ottosson 2020, https://bottosson.github.io/posts/oklab/) among saturated colours of middle
    and high lightness; the first n are the same whatever the count, and after 200 the sequence starts anew.

    Args:
        count: of colours.

    Returns:
        u8[count, 3].
    """
    return _sequence()[np.arange(count) % _COLOURS]


def ground_truth(example: Mapping[str, Any]) -> Detections:
    """The true objects of an example of an instance set; crowds, which are none, are left out.

    Args:
        example: "image" u8[H, W, 3], "boxes" f32[n, 4], "classes" i32[n], "crowd" bool[n], "masks": n run lengths,
            or arrays [H, W].

    Returns:
        objects with score 1.
    """
    kept = np.flatnonzero(~np.asarray(example[CROWD], bool))
    masks = [example[MASKS][i] for i in kept]
    return Detections(
        image_size=example[IMAGE].shape[:2],
        boxes=example[BOXES][kept],
        scores=np.ones(len(kept), np.float32),
        classes=example[CLASSES][kept],
        masks=tuple(mask if isinstance(mask, Mapping) else rle.encode(mask) for mask in masks),
    )


def confident(objects: Detections, threshold: float) -> Detections:
    """The objects whose score is at least the threshold, in their order."""
    kept = np.flatnonzero(objects.scores >= threshold)
    arrays = {name: getattr(objects, name)[kept] for name in ("boxes", "scores", "classes")}
    return Detections(image_size=objects.image_size, masks=tuple(objects.masks[i] for i in kept), **arrays)


def draw(
    image: HostArray,
    objects: Detections,
    names: Sequence[str],
    *,
    width: int | None = None,
    palette: HostArray | None = None,
    alpha: float = 0.35,
    labels: bool = True,
    scores: bool = True,
) -> HostArray:
    """The image, in half colour, with each object's mask tinted and outlined, its class and score beside it.

    Small objects lie on large ones. A label stays inside the image, covers no other label and as few objects as can be;
    one for which there is no such place is shortened to the score or left out. Where one is missing, and of more than
    30 objects, a count stands in a corner.

    Args:
        image: u8[H, W, 3].
        objects: in its pixels.
        names: of class 0, 1, ...
        width: of the result, pixels; the masks are drawn at that size, lines and text stay sharp. None: as the image.
        palette: u8[n, 3], a colour of each object; None: ``colours(n)``.
        alpha: share of the colour within a mask, 0 to 1.
        labels: whether there is any text.
        scores: whether it has the scores.

    Returns:
        u8[h, width, 3], the image's aspect kept.

    Raises:
        ValueError: image and objects differ in size, or alpha is outside [0, 1].
    """
    if image.shape[:2] != tuple(objects.image_size):
        raise ValueError(f"objects of an image {objects.image_size} on {image.shape}: expected the same size")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}: expected 0 to 1")
    palette = colours(len(objects)) if palette is None else np.asarray(palette, np.uint8)
    below = _resized(image, width or image.shape[1])
    picture = np.array(Image.blend(below, below.convert("L").convert("RGB"), 0.5))
    factors = tuple(n / m for n, m in zip(picture.shape, image.shape, strict=True))[:2]
    windows = [_scaled(mask_windows.decode(mask), factors, picture.shape[:2]) for mask in objects.masks]
    order = sorted(range(len(windows)), key=lambda i: -int(windows[i][1].sum()))
    for i in order:
        _tint(picture, windows[i], palette[i], alpha)
    thickness = max(1, round(min(picture.shape[:2]) / 350))
    for i in order:
        _tint(picture, _outline(windows[i], thickness), palette[i], 1.0)
    if not labels or not windows:
        return picture
    texts = [_texts(objects, i, names, scores) for i in range(len(objects))]
    counts = Counter(names[k] if 0 <= k < len(names) else str(k) for k in objects.classes.tolist())
    return _with_labels(picture, windows, palette, texts, counts)


def comparison(
    pictures: Sequence[Mapping[str, Any]],
    classes: Classes,
    *,
    title: str = "",
    threshold: float = 0.5,
    cell_width: int = 400,
) -> HostArray:
    """Image, true objects and found ones side by side, one example a row.

    A found object has the colour of the true one that it matches (same class, IoU of 1/2 or more, the best score
    first), and otherwise one that no true object has.

    Args:
        pictures: of each "image" u8[H, W, 3], "truth" and "prediction" (``instances.Detections``), "index".
        classes: names.
        title: at the top, if any.
        threshold: scores of at least this are drawn.
        cell_width: pixels.

    Returns:
        u8[H', W', 3].

    Raises:
        ValueError: no pictures.
    """
    cells = []
    for picture in pictures:
        image, truth = picture["image"], picture["truth"]
        found = confident(picture["prediction"], threshold)
        match = _matches(truth, found)
        own = len(truth) + np.cumsum(match < 0) - 1
        palette = colours(len(truth) + len(found))
        options = {"width": _cell_size(image, cell_width), "labels": False}
        right = int((match >= 0).sum())
        cells += [
            visualize.Cell(np.asarray(_resized(image, options["width"])), f"no. {picture['index']}"),
            visualize.Cell(draw(image, truth, classes.names, **options), f"{len(truth)} objects"),
            visualize.Cell(
                draw(image, found, classes.names, palette=palette[np.where(match < 0, own, match)], **options),
                f"{len(found)} found, {right} match",
            ),
        ]
    headers = ("image", "ground truth", f"prediction (score {threshold:g} or more)")
    return visualize.sheet(cells, columns=3, title=title, headers=headers, cell_width=cell_width)


def cell(image: HostArray, objects: Detections, names: Sequence[str], caption: str, cell_width: int) -> visualize.Cell:
    """One picture of a ``visualize.sheet``, drawn at the size at which it is shown there, without text on it."""
    drawn = draw(image, objects, names, width=_cell_size(image, cell_width), labels=False)
    return visualize.Cell(drawn, caption)


@functools.cache
def _sequence() -> HostArray:
    """u8[_COLOURS, 3], see `colours`."""
    grid = np.linspace(0, 255, 18).round()
    candidates = np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _oklab(candidates / 255)
    vivid = (np.hypot(lab[:, 1], lab[:, 2]) > 0.12) & (lab[:, 0] > 0.6) & (lab[:, 0] < 0.93)
    candidates, lab = candidates[vivid], lab[vivid]
    chosen = [int(np.abs(candidates - (255, 75, 60)).sum(axis=1).argmin())]
    distance = np.full(len(lab), np.inf)
    for _ in range(_COLOURS - 1):
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
        chosen.append(int(distance.argmax()))
    return candidates[chosen].astype(np.uint8)


def _oklab(rgb: HostArray) -> HostArray:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lms = np.cbrt(linear @ np.array([[0.4122214708, 0.2119034982, 0.0883024619],
                                     [0.5363325363, 0.6806995451, 0.2817188376],
                                     [0.0514459929, 0.1073969566, 0.6299787005]]))  # fmt: skip
    return lms @ np.array([[0.2104542553, 1.9779984951, 0.0259040371],
                           [0.7936177850, -2.4285922050, 0.7827717662],
                           [-0.0040720468, 0.4505937099, -0.8086757660]])  # fmt: skip


def _resized(image: HostArray, width: int) -> Image.Image:
    picture = Image.fromarray(image)
    if width == picture.width:
        return picture
    height = max(1, round(picture.height * width / picture.width))
    return picture.resize((width, height), Image.Resampling.BOX if width < picture.width else Image.Resampling.BICUBIC)


def _cell_size(image: HostArray, cell_width: int) -> int:
    """The width at which a sheet shows a picture that is higher than its cells may be."""
    return max(1, min(cell_width, round(2 * cell_width * image.shape[1] / image.shape[0])))


def _scaled(window: mask_windows.Window, factors: tuple[float, float], size: tuple[int, int]) -> mask_windows.Window:
    """The window on a grid finer or coarser by the factors, its edge smooth; a pixel at least of what is not empty."""
    (y, x), inside = window
    if factors == (1.0, 1.0) or not inside.size:
        return window
    box = np.array([x, y, x + inside.shape[1], y + inside.shape[0]]) * np.tile(factors[::-1], 2)
    scaled = mask_windows.paste(inside, box, size, rule="detectron2")
    if scaled[1].any():
        return scaled
    centre = tuple(min(int((box[i] + box[i + 2]) / 2), size[1 - i] - 1) for i in (1, 0))
    return centre, np.ones((1, 1), bool)


def _outline(window: mask_windows.Window, thickness: int) -> mask_windows.Window:
    origin, inside = window
    return origin, inside & ~ndimage.binary_erosion(inside, iterations=thickness)


def _tint(picture: HostArray, window: mask_windows.Window, colour: HostArray, alpha: float) -> None:
    (y, x), inside = window
    part = picture[y : y + inside.shape[0], x : x + inside.shape[1]]
    part[inside] = np.rint((1 - alpha) * part[inside] + alpha * colour.astype(np.float32)).astype(np.uint8)


def _texts(objects: Detections, i: int, names: Sequence[str], scores: bool) -> tuple[str, ...]:
    """What may be written beside an object: all of it, or where that finds no place its score."""
    class_id, score = int(objects.classes[i]), f"{objects.scores[i]:.0%}"
    name = names[class_id] if 0 <= class_id < len(names) else str(class_id)
    return (f"{name} {score}", score) if scores else (name,)


def _with_labels(
    picture: HostArray,
    windows: Sequence[mask_windows.Window],
    palette: HostArray,
    texts: Sequence[Sequence[str]],
    counts: Mapping[str, int],
) -> HostArray:
    """The picture with the first text of each object that fits beside it, and a count of each class if one has none."""
    height, width = picture.shape[:2]
    font = visualize.font(int(np.clip(min(height, width) / 42, 11, 44)))
    occupied = np.zeros((height, width), bool)
    for (y, x), inside in windows:
        occupied[y : y + inside.shape[0], x : x + inside.shape[1]] |= inside
    total = np.pad(occupied.astype(np.int64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    page = Image.fromarray(picture)
    pen = ImageDraw.Draw(page)
    placed: list[_Box] = []
    for i, choices in enumerate(texts if len(texts) <= _LABELLED else ()):
        for text in choices:
            box = _best(_beside(windows[i], _label_size(text, font)), total, placed)
            if box is not None:
                _label(pen, box, text, font, tuple(palette[i].tolist()))
                placed.append(box)
                break
    if len(placed) < len(texts):
        common = Counter(counts).most_common(_SHOWN)
        others = sum(counts.values()) - sum(n for _, n in common)
        text = ",  ".join(f"{name}: {n}" for name, n in common) + (f",  others: {others}" if others else "")
        size = _label_size(text, font)
        right, bottom = width - size[0], height - size[1]
        corners = [(x, y, x + size[0], y + size[1]) for y in (0, bottom) for x in (0, right)]
        box = _best(corners, total, placed)
        if box is not None:
            _label(pen, box, text, font, (24, 26, 32))
    return np.array(page)


def _label_size(text: str, font: Any) -> tuple[int, int]:
    """(width, height) of a label with its margin."""
    margin = max(2, round(font.size / 4))
    return int(np.ceil(font.getlength(text))) + 2 * margin, round(1.2 * font.size) + margin


def _label(pen: ImageDraw.ImageDraw, box: _Box, text: str, font: Any, colour: tuple[int, ...]) -> None:
    x0, y0, x1, y1 = box
    bright = float(np.dot(colour, (0.299, 0.587, 0.114))) > 120
    pen.rectangle((x0, y0, x1 - 1, y1 - 1), fill=colour)
    ink = visualize.INK if bright else visualize.PAPER
    pen.text(((x0 + x1) / 2, (y0 + y1) / 2), text, fill=ink, font=font, anchor="mm")


def _beside(window: mask_windows.Window, size: tuple[int, int]) -> list[_Box]:
    """The places of a label about its object, the best first: above, below, right, left, on it."""
    (y, x), inside = window
    rows, columns = inside.shape
    width, height = size
    middle = x + (columns - width) // 2
    level = y + (rows - height) // 2
    corners = [
        (x, y - height), (middle, y - height), (x + columns - width, y - height), (x, y + rows), (middle, y + rows),
        (x + columns - width, y + rows), (x + columns, level), (x - width, level), (x + columns, y), (x - width, y),
        (x, y), (middle, level), (x, y + rows - height),
    ]  # fmt: skip
    return [(left, top, left + width, top + height) for left, top in corners]


def _best(places: Sequence[_Box], total: HostArray, placed: Sequence[_Box]) -> _Box | None:
    """The first place inside the picture that covers no label and the fewest objects; None if there is none.

    Args:
        places: to choose from.
        total: i64[H + 1, W + 1], the pixels of objects above and to the left.
        placed: labels.
    """
    height, width = (n - 1 for n in total.shape)
    best, least = None, np.inf
    for rank, (x0, y0, x1, y1) in enumerate(places):
        outside = x0 < 0 or y0 < 0 or x1 > width or y1 > height
        if outside or any(x0 < b[2] and b[0] < x1 and y0 < b[3] and b[1] < y1 for b in placed):
            continue
        covered = total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]
        cost = covered / ((x1 - x0) * (y1 - y0)) + 0.03 * rank
        if cost < least:
            best, least = (x0, y0, x1, y1), cost
    return best


def _matches(truth: Detections, found: Detections) -> HostArray:
    """i64[n]: the true object that each found one matches, or -1."""
    match = np.full(len(found), -1)
    if not len(truth) or not len(found):
        return match
    overlap = np.asarray(rle.iou(found.masks, truth.masks, np.zeros(len(truth), bool)))
    overlap = np.where(found.classes[:, None] == truth.classes[None, :], overlap, -1.0)
    for i in np.argsort(-found.scores, kind="stable"):
        best = int(overlap[i].argmax())
        if overlap[i, best] >= _MATCH:
            match[i], overlap[:, best] = best, -1.0
    return match
