"""Pictures of going up: how many taps reach a pixel, and five upsamplings of one image."""

import jax.numpy as jnp
import numpy as np
from PIL import Image

from segjax import ops
from segjax.derivation import colours, draw, layout
from segjax.derivation.cases import Case, case
from segjax.derivation.text import coverage
from segjax.types import Array

_MOST_COVERED = 600  # pixels of a side that are drawn


def checkerboard(geometry: Case) -> Image.Image:
    """Draws how many taps reach each pixel: for the geometry, for k3 s2 and for k4 s2, and says when all get as many.

    Args:
        geometry: any.

    Returns:
        the picture.
    """
    panels = [
        _covered(geometry, f"this geometry: {_words_of(geometry)}"),
        _covered(case((9, 9), 3, stride=2, padding=1), "3x3 kernel, stride 2: a checkerboard"),
        _covered(case((10, 10), 4, stride=2, padding=1), "4x4 kernel, stride 2: even inside the border"),
    ]
    words = (
        "Tap t of output value i falls on pixel p where s i + d t - low = p: on p fall the taps whose d t is p + low "
        "modulo the stride s. Of 3 taps at stride 2, two fall on every other pixel and one on those between, so in two "
        "dimensions 4, 2 or 1 products are summed: even a constant y under a constant kernel comes out as a "
        "checkerboard. Where the stride divides the kernel (and shares no factor with the dilation), each pixel inside "
        "the border gets k / s taps per axis, 2 x 2 for a 4x4 kernel at stride 2, and the pattern is gone."
    )
    row = layout.beside(panels, gap=72)
    return layout.framed(layout.below([row, layout.paragraph(words, max(row.width, 1000))], gap=40))


def upsamplings() -> Image.Image:
    """Draws five ways from 4x4 back to 8x8 on one small image that was max-pooled.

    Returns:
        the picture.
    """
    image = _example_image()
    pooled, indices = ops.max_pool(image, 2, return_indices=True)
    kernel = ops.bilinear_kernel(4, 1)
    size = image.shape[1:3]
    ways = [
        (ops.nearest_unpool(pooled, 2), "nearest unpooling", "Every value fills its 2x2 block."),
        (ops.bed_of_nails(pooled, 2), "bed of nails", "The value goes to the block's first pixel, zeros elsewhere."),
        (
            ops.max_unpool(pooled, indices, size),
            "max-unpooling",
            "The value goes back to where the maximum was found, zeros elsewhere.",
        ),
        (
            ops.conv_transpose(pooled, kernel, stride=2, padding=1),
            "transposed convolution",
            "4x4 bilinear kernel, stride 2, padding 1: inside the border the bilinear resize; at the border a smaller "
            "sum, for nothing lies beyond.",
        ),
        (ops.resize(pooled, size, method="bilinear"), "bilinear resize", "Half-pixel centres, edge values repeated."),
    ]
    first = [
        _pixels(image, "the image, 8x8", "What was pooled.", 52),
        _pixels(pooled, "max-pooled 2x2, 4x4", "What all five start from; the places of the maxima are kept.", 104),
    ]
    panels = first + [_pixels(picture, title, words, 52) for picture, title, words in ways]
    ends = np.linspace(0, 100, 6)
    bar = layout.titled(draw.scale(colours.grey(ends, 0, 100), [f"{v:.0f}" for v in ends], cell=52), "grey value")
    grid = [layout.beside(panels[:4], gap=48), layout.beside([*panels[4:], bar], gap=48)]
    return layout.framed(layout.below(grid, gap=48))


def _covered(geometry: Case, title: str) -> Image.Image:
    counts = draw.image(coverage(geometry))
    title += f", its first {_MOST_COVERED} pixels" * (max(counts.shape) > _MOST_COVERED)
    counts = counts[:_MOST_COVERED, :_MOST_COVERED]
    cell = int(np.clip(_MOST_COVERED // max(counts.shape), 1, 60))
    top = max(int(counts.max()), 1)
    # Zero is white: the lightest count that is drawn blue must differ from it.
    picture = draw.cells(draw.words(counts, zeros=True), colours.ramp(counts, 0, 1.35 * top), cell)
    shown = sorted({int(v) for v in np.unique(counts)})
    shown = shown if len(shown) <= 8 else [shown[i] for i in np.linspace(0, len(shown) - 1, 8).round().astype(int)]
    bar = draw.scale(colours.ramp(np.array(shown), 0, 1.35 * top), [str(v) for v in shown], title="taps", cell=32)
    return layout.titled(layout.below([picture, bar], gap=16), title, [_phases(geometry)], width=560)


def _words_of(geometry: Case) -> str:
    kernel = "x".join(map(str, geometry.window)) if geometry.rank == 2 else f"{geometry.window[0]}-tap"
    stride, dilation = ("x".join(map(str, dict.fromkeys(values))) for values in (geometry.stride, geometry.dilation))
    return f"{kernel} kernel, stride {stride}" + (f", dilation {dilation}" if dilation != "1" else "")


def _phases(geometry: Case) -> str:
    """Says how many taps fall on each phase of the stride, per axis."""
    parts = []
    for k, s, d in zip(geometry.window, geometry.stride, geometry.dilation, strict=True):
        parts.append(np.bincount(d * np.arange(k) % s, minlength=s).tolist())
    even = all(len(set(part)) == 1 for part in parts)
    texts = [f"{part[0]} each" if len(set(part)) == 1 else ", ".join(map(str, part)) for part in parts]
    axes = texts[0] if len(set(texts)) == 1 else f"rows {texts[0]}; columns {texts[1]}"
    if max(geometry.stride) == 1:
        return "Stride 1: every pixel inside the border gets every tap."
    return f"Taps per axis, by pixel mod stride: {axes}. {'Even.' if even else 'Uneven.'}"


def _pixels(image: Array, title: str, words: str, cell: int) -> Image.Image:
    values = np.asarray(image)[0, :, :, 0]
    picture = draw.cells(draw.words(np.round(values).astype(int)), colours.grey(values, 0, 100), cell)
    return layout.titled(picture, title, [words])


def _example_image() -> Array:
    """f32[1, 8, 8, 1], 0 to 99: a bright disc on a slope, so that maxima lie at different places of their blocks."""
    rows, columns = np.mgrid[:8, :8]
    disc = np.exp(-((rows - 2.7) ** 2 + (columns - 3.4) ** 2) / 4.5)
    slope = 0.28 * (rows + 0.6 * columns) / 11 + 0.04 * ((3 * rows + 5 * columns) % 4)
    return jnp.asarray(np.round(99 * np.clip(0.72 * disc + slope, 0, 1)), jnp.float32)[None, :, :, None]
