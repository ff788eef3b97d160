"""Draws one scene of overlapping shapes: NumPy and PIL only, a pure function of its seed.

What a class is, is told by its outline and by the pattern of its surface, never by colour: colours, shading and shadows
are drawn from one distribution for every object, whatever its class, and the background's from the same. An object's
outline is a signed distance field (negative inside, pixels), so that its edge is anti-aliased in the image and exact
in the label.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from segjax.types import HostArray

SIZE = 128  # height and width, pixels
SMALLEST, LARGEST = 6.0, 90.0  # extent of an object, pixels; a box of 90 covers half the frame
MIN_VISIBLE = 0.6  # the share of its pixels that every object keeps, whatever is drawn over it
MAX_TURN = 0.4  # rotation of an object, radians either way
MIN_CONTRAST = 60.0  # distance in RGB between an object and all that was drawn before it

Outline = Callable[[HostArray, HostArray, float], HostArray]  # (u, v, slim in 0..1) -> signed distance, radius 1
Pattern = Callable[[HostArray, HostArray, np.random.Generator], HostArray]  # (x, y in radians, rng) -> about -1 .. 1


class Scene(NamedTuple):
    """One drawing: ``image`` u8[H, W, 3], ``label`` u8[H, W], ``masks`` bool[N, H, W], ``classes`` i32[N].

    Masks hold the visible part of each object, in drawing order; together they are the label's foreground.
    """

    image: HostArray
    label: HostArray
    masks: HostArray
    classes: HostArray


def _polygon(u: HostArray, v: HostArray, sides: int, inner: float) -> HostArray:
    """Star polygon of radius 1: `inner` is the radius of its notches (cos(pi / sides): a regular polygon)."""
    step = np.pi / sides
    angle = np.abs((np.arctan2(u, -v) + step) % (2 * step) - step)  # folded onto half a point of the star
    length = np.hypot(u, v)
    x, y = length * np.cos(angle), length * np.sin(angle)
    # The one edge left runs from the tip (1, 0) to the notch at angle `step`.
    dx, dy = inner * np.cos(step) - 1.0, inner * np.sin(step)
    return (dy * (x - 1.0) - dx * y) / np.hypot(dx, dy)


def _disc(u: HostArray, v: HostArray, slim: float) -> HostArray:
    del slim
    return np.hypot(u, v) - 1.0


def _ring(u: HostArray, v: HostArray, slim: float) -> HostArray:
    width = 0.2 + 0.04 * slim
    return np.abs(np.hypot(u, v) - 1.0 + width) - width


def _box(u: HostArray, v: HostArray, slim: float) -> HostArray:
    return np.maximum(np.abs(u) - 1.0, np.abs(v) - 1.0 + 0.35 * slim)


def _triangle(u: HostArray, v: HostArray, slim: float) -> HostArray:
    return 1.3 * _polygon(u * (1.0 + 0.2 * slim) / 1.3, v / 1.3, 3, 0.5)


def _star(u: HostArray, v: HostArray, slim: float) -> HostArray:
    return 1.15 * _polygon(u / 1.15, v / 1.15, 5, 0.5 - 0.08 * slim)


def _cross(u: HostArray, v: HostArray, slim: float) -> HostArray:
    width = 0.36 - 0.06 * slim
    a, b = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(a - 1.0, b - width), np.maximum(a - width, b - 1.0))


def _rows(x: HostArray, y: HostArray, rng: np.random.Generator) -> HostArray:
    del rng
    return np.sign(np.sin(y)) + np.zeros_like(x)


def _grain(x: HostArray, y: HostArray, rng: np.random.Generator) -> HostArray:
    return np.sign(rng.random(np.broadcast_shapes(x.shape, y.shape), np.float32) - np.float32(0.5))


def _checks(x: HostArray, y: HostArray, rng: np.random.Generator) -> HostArray:
    del rng
    return np.sign(np.sin(x)) * np.sign(np.sin(y))


def _columns(x: HostArray, y: HostArray, rng: np.random.Generator) -> HostArray:
    del rng
    return np.sign(np.sin(x)) + np.zeros_like(y)


def _dots(x: HostArray, y: HostArray, rng: np.random.Generator) -> HostArray:
    del rng
    return np.where(np.cos(x) + np.cos(y) > 0.6, np.float32(1.6), np.float32(-0.5))


def _diagonals(x: HostArray, y: HostArray, rng: np.random.Generator) -> HostArray:
    return np.sign(np.sin(np.float32(0.7) * (x + y if rng.random() < 0.5 else x - y)))


OUTLINES = (_disc, _ring, _box, _triangle, _star, _cross)
PATTERNS = (_rows, _grain, _checks, _columns, _dots, _diagonals)  # of the class with the outline above
CLASS_NAMES = ("background", *(outline.__name__[1:] for outline in OUTLINES))


def draw(seed: Sequence[int], *, size: int = SIZE) -> Scene:
    """Draws the scene of a seed.

    Objects are placed largest first, roughly, so that small ones lie on top; a place where the new object would hide
    more than 1 - MIN_VISIBLE of an earlier one is not taken.

    Args:
        seed: integers, e.g. (version, split, index): equal seeds give equal scenes on any machine or process.
        size: height and width in pixels.

    Returns:
        The scene, with at least one object.
    """
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0.0, 2.0 * np.pi)
    light = np.float32([np.cos(angle), np.sin(angle)])  # where it comes from, (x, y)
    colours = [rng.uniform(30.0, 225.0, 3)]
    canvas = _clouds(rng, size, colours[0])
    owner = np.zeros((size, size), np.int16)  # 0: background, n: the n-th object
    classes: list[int] = []
    areas: list[int] = []  # of the whole objects, pixels
    count = int(rng.integers(3, 7))
    share = np.where(rng.random(count) < 0.15, rng.uniform(0.0, 0.2, count), rng.beta(2.5, 2.2, count))
    extents = (SMALLEST + (LARGEST - SMALLEST) * share) * size / SIZE
    for extent in extents[np.argsort(-extents * rng.uniform(0.7, 1.3, count))]:
        kind = int(rng.integers(len(OUTLINES)))
        placed = _place(rng, OUTLINES[kind], float(extent), owner, areas)
        if placed is None:
            continue
        rows, columns, distance = placed
        classes.append(kind + 1)
        areas.append(int((distance < 0.0).sum()))
        owner[rows, columns][distance < 0.0] = len(classes)
        colours.append(_other_colour(rng, colours))
        patch = _surface(rng, PATTERNS[kind], *distance.shape, colours[-1])
        patch *= _gradient(*distance.shape, light * np.float32(rng.uniform(0.0, 0.5) / max(extent, 12.0)))
        below = canvas[rows, columns]
        below *= _shadow(rng, distance, light)
        below += np.clip(0.5 - distance, 0.0, 1.0)[..., None] * (patch - below)
    canvas *= _gradient(size, size, light * np.float32(rng.uniform(0.0, 0.3) / size))
    canvas += np.float32(rng.uniform(2.0, 7.0)) * rng.standard_normal(canvas.shape, np.float32)
    masks = owner == np.arange(1, len(classes) + 1, dtype=np.int16)[:, None, None]
    label = np.array([0, *classes], np.uint8)[owner]
    return Scene(np.clip(canvas, 0.0, 255.0).astype(np.uint8), label, masks, np.array(classes, np.int32))


def _place(
    rng: np.random.Generator, outline: Outline, extent: float, owner: HostArray, areas: list[int]
) -> tuple[slice, slice, HostArray] | None:
    """Looks for a place: (rows, columns, signed distance f32[h, w] in pixels), or None where ten were too crowded."""
    size = owner.shape[0]
    slim, turn = rng.uniform(0.0, 1.0), rng.uniform(-MAX_TURN, MAX_TURN)
    radius = extent / 2.0
    cos, sin = np.float32(np.cos(turn) / radius), np.float32(np.sin(turn) / radius)
    reach = radius * (1.42 if outline is _box else 1.3) + 9.0  # the farthest corner, and room for the shadow
    visible = np.bincount(owner.ravel(), minlength=len(areas) + 1)
    for _ in range(10):
        cx, cy = rng.uniform(0.8 * radius, size - 0.8 * radius, 2)
        rows = slice(max(int(cy - reach), 0), min(int(cy + reach) + 1, size))
        columns = slice(max(int(cx - reach), 0), min(int(cx + reach) + 1, size))
        x = np.arange(columns.start, columns.stop, dtype=np.float32) - np.float32(cx)
        y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - np.float32(cy)
        distance = np.float32(radius) * outline(x * cos + y * sin, y * cos - x * sin, np.float32(slim))
        hidden = owner[rows, columns][distance < 0.0]
        left = visible - np.bincount(hidden, minlength=len(areas) + 1)
        if hidden.size and all(left[n + 1] >= MIN_VISIBLE * area for n, area in enumerate(areas)):
            return rows, columns, distance
    return None


def _other_colour(rng: np.random.Generator, colours: list[HostArray]) -> HostArray:
    """A colour at least MIN_CONTRAST from all of `colours`, or the farthest of 32 candidates: f64[3]."""
    candidates = rng.uniform(30.0, 225.0, (32, 3))
    nearest = np.linalg.norm(candidates[:, None] - np.array(colours)[None], axis=-1).min(axis=1)
    far = np.flatnonzero(nearest >= MIN_CONTRAST)
    return candidates[far[0] if far.size else int(nearest.argmax())]


def _surface(rng: np.random.Generator, pattern: Pattern, height: int, width: int, colour: HostArray) -> HostArray:
    """A colour with the brightness pattern of a class on it: f32[height, width, 3]."""
    period, turn, phase = rng.uniform(5.0, 8.0), rng.uniform(-0.2, 0.2), rng.uniform(-1.0, 1.0, 2)
    scale = np.float32(2.0 * np.pi / period)
    x = (np.arange(width, dtype=np.float32) - np.float32(width / 2)) * scale
    y = ((np.arange(height, dtype=np.float32) - np.float32(height / 2)) * scale)[:, None]
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    wave = pattern(x * cos + y * sin + np.float32(phase[0]), y * cos - x * sin + np.float32(phase[1]), rng)
    tint = rng.uniform(25.0, 50.0) * rng.uniform(0.7, 1.0, 3)
    return colour.astype(np.float32) + wave[..., None] * tint.astype(np.float32)


def _clouds(rng: np.random.Generator, size: int, colour: HostArray) -> HostArray:
    """The background, soft clouds around a mean colour: f32[size, size, 3]."""
    cells = int(size / rng.uniform(10.0, 40.0)) + 2
    wave = Image.fromarray(rng.uniform(-1.0, 1.0, (cells, cells)).astype(np.float32))
    tint = rng.uniform(-30.0, 30.0, 3).astype(np.float32)
    wave = np.asarray(wave.resize((size, size), Image.Resampling.BICUBIC))
    return colour.astype(np.float32) + wave[..., None] * tint


def _gradient(height: int, width: int, slope: HostArray) -> HostArray:
    """Shading, 1 in the middle, `slope` (x, y) brighter per pixel: f32[height, width, 1]."""
    x = (np.arange(width, dtype=np.float32) - np.float32(width / 2)) * slope[0]
    y = (np.arange(height, dtype=np.float32) - np.float32(height / 2)) * slope[1]
    return np.float32(1.0) + (x + y[:, None])[..., None]


def _shadow(rng: np.random.Generator, distance: HostArray, light: HostArray) -> HostArray:
    """What is left of the light beneath an object, whose shadow falls away from `light`: f32[h, w, 1], 1 = all."""
    dx, dy = np.rint(-light * rng.uniform(2.0, 5.0)).astype(int)
    cover = Image.fromarray((np.clip(0.5 - distance, 0.0, 1.0) * 255.0).astype(np.uint8))
    shifted = Image.new("L", cover.size)
    shifted.paste(cover, (int(dx), int(dy)))
    soft = np.asarray(shifted.filter(ImageFilter.BoxBlur(2)), np.float32)
    return (np.float32(1.0) - np.float32(rng.uniform(0.1, 0.4) / 255.0) * soft)[..., None]
