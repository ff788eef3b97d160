"""Curves and bars as inline SVG text; colours come from the style sheet of the page, light or dark."""

import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 460, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 28
_MAX_POINTS = 400
_SMOOTHED_FROM = 40  # points; fewer are not smoothed
_DOTS_UP_TO = 60

Points = Sequence[tuple[float, float]]


def curve(
    points: Points, *, label: str, low: float | None = None, high: float | None = None, smooth: bool = False
) -> str:
    """A line chart of (step, value).

    Args:
      points: in order of step; values that are not finite are left out.
      label: what the values are, read aloud to those who do not see the picture.
      low: lower end of the value axis; None takes the smallest value.
      high: upper end; None takes the largest.
      smooth: draw a moving average over the values, which stay visible behind it.

    Returns:
      An ``<svg>`` element; a line of text where there is nothing to draw yet.
    """
    points = [(x, y) for x, y in points if math.isfinite(y)]
    if not points:
        return '<p class="none">nothing recorded yet</p>'
    y_ticks = ticks(
        min(y for _, y in points) if low is None else low, max(y for _, y in points) if high is None else high
    )
    x_ticks = ticks(min(0, points[0][0]), points[-1][0], whole=True)
    x_ends, y_ends = (min(0, points[0][0]), max(points[-1][0], 1)), (y_ticks[0], y_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ends[0]) / (x_ends[1] - x_ends[0])
        up = (min(max(y, y_ends[0]), y_ends[1]) - y_ends[0]) / (y_ends[1] - y_ends[0])
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">']
    for value in y_ticks:
        _, y = place(x_ends[0], value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for value in x_ticks:
        if x_ends[0] <= value <= x_ends[1]:
            x, _ = place(value, y_ends[0])
            parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 9}" text-anchor="middle">{value:g}</text>')
    mean = smoothed(points) if smooth and len(points) >= _SMOOTHED_FROM else []
    drawn = [place(x, y) for x, y in thinned(points)]
    parts.append(f'<path class="{"raw" if mean else "curve"}" d="{_path(drawn)}"/>')
    if mean:
        parts.append(f'<path class="curve" d="{_path([place(x, y) for x, y in thinned(mean)])}"/>')
    elif len(points) <= _DOTS_UP_TO:
        parts += [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in drawn]
    return "".join([*parts, "</svg>"])


def bars(rows: Sequence[tuple[str, float | None, str]], *, label: str) -> str:
    """Horizontal bars of values in [0, 1].

    Args:
      rows: (name, value or None where it is not defined, CSS colour).
      label: what the values are.
    """
    width, row, left, right = 700, 26, 150, 60
    parts = [f'<svg viewBox="0 0 {width} {row * len(rows) + 4}" role="img" aria-label="{html.escape(label)}">']
    for number, (name, value, color) in enumerate(rows):
        y, known = row * number + 4, value is not None and math.isfinite(value)
        length = (width - left - right) * min(max(value, 0.0), 1.0) if known else 0.0
        color = html.escape(color)
        short = name if len(name) <= 20 else name[:19] + "…"
        parts.append(
            f'<text class="name" x="{left - 10}" y="{y + 14}" text-anchor="end">{html.escape(short)}</text>'
            f'<rect class="track" x="{left}" y="{y}" width="{width - left - right}" height="18" rx="3"/>'
            f'<rect class="bar" x="{left}" y="{y}" width="{length:.1f}" height="18" rx="3" fill="{color}"/>'
            f'<text class="value" x="{width - right + 10}" y="{y + 14}">{f"{value:.3f}" if known else "absent"}</text>'
        )
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float, *, whole: bool = False, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from at or below ``low`` to at or above ``high``."""
    # Below 1e-300 the spacing's logarithm is at the end of what floats can say.
    span = next(size for size in (high - low, abs(high), 1.0) if size > 1e-300)
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    spacing = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    if whole:
        spacing = max(1.0, spacing)
    first = math.floor(low / spacing + 1e-9)
    last = max(math.ceil(high / spacing - 1e-9), first + 1)
    places = 1 - math.floor(math.log10(spacing))
    return [round(number * spacing, places) for number in range(first, last + 1)]


def smoothed(points: Points, window: float = 0.05) -> list[tuple[float, float]]:
    """Moving average over the last ``window`` of all points."""
    size = max(2, int(len(points) * window))
    means, total = [], 0.0
    for number, (x, y) in enumerate(points):
        total += y - (points[number - size][1] if number >= size else 0.0)
        means.append((x, total / min(number + 1, size)))
    return means


def thinned(points: Points) -> list[tuple[float, float]]:
    """At most about 400 points: of each run of points the smallest and the largest, so that no peak is lost."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    size = -(-2 * len(points) // _MAX_POINTS)
    kept = []
    for begin in range(0, len(points), size):
        part = points[begin : begin + size]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _path(places: Points) -> str:
    return "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in places)
