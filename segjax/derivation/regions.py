"""What RoIPool's rounding does to a region, and how far both RoI operations are from the region's exact mean.

The example: 200 x 145 pixels of a 512 x 512 image, features of stride 32. In pixels of the map the region runs over
columns 9.25 to 15.5 and rows 6 to 10.53125, and no side is a whole number.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from segjax import ops
from segjax.types import HostArray

STRIDE, MAP_SIZE, CHANNELS = 32, 16, 64
BOX = (296, 192, 496, 337)
BINS = (3, 7)  # per axis, of the two output sizes
BOUND = 1e-5  # of float32 operations against their float64 loops, per unit of the map's standard deviation
_SAMPLES = (1, 2, 4, 8)


class Cover(NamedTuple):
    """The bins of a rule, in pixels of the map: edges [(first, end)] per axis, and what is told of them."""

    name: str
    rows: list[tuple[float, float]]
    columns: list[tuple[float, float]]


class Row(NamedTuple):
    """Errors of one operation against the exact mean: largest and mean over bins and channels."""

    name: str
    largest: float
    mean: float


def region() -> tuple[float, ...]:
    """Gives the example's box in pixels of the map.

    Returns:
        (x0, y0, x1, y1).
    """
    return tuple(c / STRIDE for c in BOX)


def truncated(bins: int) -> Cover:
    """Truncates the corner, then the side, then the side of a bin: the rule of lectures.

    Args:
        bins: per axis.

    Returns:
        its bins; what is left over beyond the last one belongs to none.
    """
    x0, y0, x1, y1 = region()
    axes = []
    for low, side in ((y0, y1 - y0), (x0, x1 - x0)):
        step = max(int(side) // bins, 1)
        axes.append([(int(low) + i * step, int(low) + (i + 1) * step) for i in range(bins)])
    return Cover("truncated twice", *axes)


def pooled(bins: int) -> Cover:
    """Rounds the corners to the nearest pixel, both included, and bins outwards: ops.roi_pool.

    Args:
        bins: per axis.

    Returns:
        its bins.
    """
    away = lambda v: math.floor(v + 0.5)
    x0, y0, x1, y1 = region()
    axes = []
    for low, high in ((y0, y1), (x0, x1)):
        side = max(away(high) - away(low) + 1, 1)
        spans = [((i * side) // bins, -((-(i + 1) * side) // bins)) for i in range(bins)]
        axes.append([tuple(min(away(low) + edge, MAP_SIZE) for edge in span) for span in spans])
    return Cover("RoIPool", *axes)


def aligned(bins: int) -> Cover:
    """Divides the region as it is: ops.roi_align.

    Args:
        bins: per axis.

    Returns:
        its bins.
    """
    x0, y0, x1, y1 = region()
    edges = [np.linspace(low, high, bins + 1).tolist() for low, high in ((y0, y1), (x0, x1))]
    return Cover("RoIAlign", *(list(zip(e[:-1], e[1:], strict=True)) for e in edges))


def lost_and_leaked(cover: Cover) -> tuple[float, float]:
    """Compares the pixels that some bin reads with the region.

    Args:
        cover: of a rule.

    Returns:
        (pixels of the image that belong to the region and no bin, pixels that a bin reads outside the region).
    """
    x0, y0, x1, y1 = region()
    (top, bottom), (left, right) = ((a[0][0], a[-1][1]) for a in (cover.rows, cover.columns))
    both = max(min(bottom, y1) - max(top, y0), 0) * max(min(right, x1) - max(left, x0), 0)
    return tuple(STRIDE**2 * (area - both) for area in ((x1 - x0) * (y1 - y0), (right - left) * (bottom - top)))


def exact_matrix(edges: Sequence[tuple[float, float]], pixels: int) -> HostArray:
    """Integrates linear interpolation over bins in closed form.

    Pixel k has its centre at k + 0.5; before the first and behind the last centre the border goes on. The mean over
    [a, b] takes of pixel k the integral of its hat, max(1 - |x - k - 0.5|, 0), over b - a.

    Args:
        edges: (a, b) per bin, inside the map.
        pixels: of the map on this axis.

    Returns:
        f64[bins, pixels]; rows sum to 1.
    """
    a, b = (np.array(side, np.float64)[:, None] for side in zip(*edges, strict=True))
    k = np.arange(-1, pixels + 1)[None]

    def integral(x: HostArray) -> HostArray:
        t = np.clip(x - k - 0.5, -1, 1)
        return np.where(t < 0, (1 + t) ** 2 / 2, 1 - (1 - t) ** 2 / 2)

    weights = (integral(b) - integral(a)) / (b - a)
    weights[:, 1] += weights[:, 0]
    weights[:, -2] += weights[:, -1]
    return weights[:, 1:-1]


def sampled_matrix(edges: Sequence[tuple[float, float]], pixels: int, samples: int, shift: float) -> HostArray:
    """The mean of samples in the middle of equal parts of each bin: RoIAlign's definition in float64.

    Args:
        edges: (a, b) per bin.
        pixels: of the map on this axis.
        samples: of a bin.
        shift: 0.5 where pixel centres lie at k + 0.5 (aligned), 0 where they are taken to lie at k.

    Returns:
        f64[bins, pixels].
    """
    weights = np.zeros((len(edges), pixels))
    for i, (a, b) in enumerate(edges):
        for s in range(samples):
            place = min(max(a + (s + 0.5) * (b - a) / samples - shift, 0), pixels - 1)
            low = min(int(place), pixels - 1)
            weights[i, low] += (1 - place + low) / samples
            weights[i, min(low + 1, pixels - 1)] += (place - low) / samples
    return weights


def feature_map(kind: str, seed: int) -> HostArray:
    """Draws a map of zero mean and standard deviation 1 per channel.

    Args:
        kind: "smooth", waves of 4 pixels and more; or "noise", every pixel by itself.
        seed: of the random values.

    Returns:
        f32[1, H, W, C].
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((MAP_SIZE, MAP_SIZE, CHANNELS))
    if kind == "smooth":
        waves = np.abs(np.fft.fftfreq(MAP_SIZE))
        low = (np.maximum(waves[:, None], waves[None, :]) <= 0.25)[..., None]
        x = np.fft.ifft2(np.fft.fft2(x, axes=(0, 1)) * low, axes=(0, 1)).real
    x -= x.mean((0, 1))
    return (x / x.std((0, 1))).astype(np.float32)[None]


def measure(kind: str, bins: int, seed: int) -> tuple[list[Row], float]:
    """Compares every operation with the exact mean over each bin.

    Args:
        kind: of `feature_map`.
        bins: per axis.
        seed: of the map.

    Returns:
        (a row per operation, the largest difference between ops.roi_align and ops.roi_pool and their float64 loops).
    """
    image = feature_map(kind, seed)
    boxes, index = jnp.array([BOX], jnp.float32), jnp.zeros(1, jnp.int32)
    options = {"output_size": bins, "spatial_scale": 1 / STRIDE}
    cover, coarse = aligned(bins), pooled(bins)
    between = lambda rows, columns: np.einsum("ph,hwc,qw->pqc", rows, image[0].astype(np.float64), columns)
    exact = between(exact_matrix(cover.rows, MAP_SIZE), exact_matrix(cover.columns, MAP_SIZE))
    whole = lambda edges: np.array([[(a <= k < b) / (b - a) for k in range(MAP_SIZE)] for a, b in edges])
    pool = np.asarray(ops.roi_pool(image, boxes, index, **options))[0]
    maxima = [[image[0, a:b, c:d].max((0, 1)) for c, d in coarse.columns] for a, b in coarse.rows]
    worst = float(np.abs(pool - maxima).max())
    found = {"RoIPool: the maximum of rounded bins": pool}
    found["the mean of RoIPool's rounded bins"] = between(whole(coarse.rows), whole(coarse.columns))
    sides = ((BOX[3] - BOX[1]) / STRIDE / bins, (BOX[2] - BOX[0]) / STRIDE / bins)
    for ratio, shift in [*((n, 0.5) for n in _SAMPLES), (0, 0.5), (2, 0.0)]:
        got = ops.roi_align(image, boxes, index, sampling_ratio=ratio, aligned=shift > 0, **options)[0]
        numbers = [ratio or math.ceil(side) for side in sides]
        wanted = between(
            *(
                sampled_matrix(edges, MAP_SIZE, n, shift)
                for edges, n in zip((cover.rows, cover.columns), numbers, strict=True)
            )
        )
        worst = max(worst, float(np.abs(got - wanted).max()))
        words = f"{ratio} x {ratio} samples" if ratio else f"adaptive: {numbers[0]} x {numbers[1]} samples"
        found[f"RoIAlign, {words}" + ", not aligned" * (shift == 0)] = got
    errors = {name: np.abs(np.asarray(value, np.float64) - exact) for name, value in found.items()}
    return [Row(name, float(e.max()), float(e.mean())) for name, e in errors.items()], worst


def quantisation_text() -> str:
    """Tells the example's numbers, and what each rule loses and lets in.

    Returns:
        lines of text.
    """
    x0, y0, x1, y1 = region()
    width, height = BOX[2] - BOX[0], BOX[3] - BOX[1]
    area = width * height
    lines = [
        f"The region is {width} x {height} pixels, columns {BOX[0]} to {BOX[2]} and rows {BOX[1]} to {BOX[3]}.",
        f"At stride {STRIDE} it is {x1 - x0:g} x {y1 - y0:g} pixels of the map, columns {x0:g} to {x1:g} and "
        f"rows {y0:g} to {y1:g}.",
        "",
        f"{'bins read':<18}{'bins':>6}{'columns':>16}{'rows':>16}{'lost':>16}{'leaked in':>18}",
    ]
    for bins in BINS:
        for cover in (truncated(bins), pooled(bins), aligned(bins)):
            lost, leaked = lost_and_leaked(cover)
            spans = [f"{edges[0][0]:g} to {edges[-1][1]:g}" for edges in (cover.columns, cover.rows)]
            lines.append(
                f"{cover.name:<18}{f'{bins}x{bins}':>6}{spans[0]:>16}{spans[1]:>16}"
                f"{lost:>9.0f} ({lost / area:>4.0%}){leaked:>10.0f} ({leaked / area:>5.0%})"
            )
    lines += [
        "",
        f"lost: pixels of the image inside the region that are in no bin, of {area:,}; leaked in: pixels outside",
        "that are in one (RoIAlign's samples also interpolate with the map's pixel beyond).",
        "Truncated twice is the rule of lectures (corner, side and bin rounded down);",
        "RoIPool is ops.roi_pool (corners to the nearest pixel, both included, bins rounded outwards, the map's",
        f"{MAP_SIZE} columns at most).",
    ]
    return "\n".join(lines)


def errors_text(kind: str, bins: int, rows: Sequence[Row]) -> str:
    """Writes the errors of one map and output size as a table.

    Args:
        kind: of the map.
        bins: per axis.
        rows: of `measure`.

    Returns:
        lines of text.
    """
    head = f"{f'{kind} map, {bins}x{bins} bins':<44}{'largest':>10}{'mean':>10}"
    return "\n".join([head, *(f"{row.name:<44}{row.largest:>10.4f}{row.mean:>10.4f}" for row in rows)])
