"""Line charts as SVG, drawn from numbers alone: no script, no font to fetch, colours of the page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 560, 250, 56, 30, 12, 12
MOST_POINTS = 400


@dataclass(frozen=True)
class Chart:
    """A chart and the words beside it.

    Attributes:
        title: What is drawn.
        svg: The drawing.
        legend: Name, last value and number of the colour (1 to 4) of each line.
    """

    title: str
    svg: str
    legend: tuple[tuple[str, str, int], ...]


def line_chart(title: str, lines: Mapping[str, Points], *, levels: Mapping[str, float] | None = None) -> Chart | None:
    """Return a chart of lines of (x, y) points and of horizontal levels; None if nothing finite is to be drawn.

    Args:
        title: What is drawn; also the text that a screen reader has.
        lines: Points by name, x ascending.
        levels: Heights by name, drawn dashed from end to end.
    """
    drawn = {name: _finite(points) for name, points in lines.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    heights = {name: y for name, y in (levels or {}).items() if math.isfinite(y)}
    if not drawn:
        return None
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points] + list(heights.values())
    across, up = _axis(min(xs), max(xs)), _axis(min(ys), max(ys))

    def place(x: float, y: float) -> str:
        left = LEFT + (x - across[0]) / (across[-1] - across[0]) * (WIDTH - LEFT - RIGHT)
        top = HEIGHT - BOTTOM - (y - up[0]) / (up[-1] - up[0]) * (HEIGHT - BOTTOM - TOP)
        return f"{left:.1f},{top:.1f}"

    parts = []
    for y in up:
        ends = place(across[0], y), place(across[-1], y)
        parts.append(f'<polyline class="grid" points="{ends[0]} {ends[1]}"/>')
        parts.append(_text(ends[0], _short(y), anchor="end", dx=-6, dy=4))
    parts += [_text(place(x, up[0]), _short(x), anchor="middle", dx=0, dy=18) for x in across]
    legend = []
    for number, (name, points) in enumerate(drawn.items()):
        colour = number % 4 + 1
        step = -(-len(points) // MOST_POINTS)
        shown = [*points[::step], points[-1]]
        parts.append(f'<polyline class="line c{colour}" points="{" ".join(place(x, y) for x, y in shown)}"/>')
        left, top = place(*points[-1]).split(",")
        parts.append(f'<circle class="c{colour}" cx="{left}" cy="{top}" r="3"/>')  # one point alone is no line
        legend.append((_words(name), _short(points[-1][1]), colour))
    for number, (name, y) in enumerate(heights.items(), start=len(drawn)):
        colour = number % 4 + 1
        ends = place(across[0], y), place(across[-1], y)
        parts.append(f'<polyline class="line level c{colour}" points="{ends[0]} {ends[1]}"/>')
        legend.append((_words(name), _short(y), colour))
    label = escape(title, quote=True)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return Chart(title, svg, tuple(legend))


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _axis(low: float, high: float) -> list[float]:
    """Return three to seven round numbers, ascending, from at most `low` to at least `high`.

    >>> _axis(0.3, 4.1)
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-300):
        margin = abs(low) / 2 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _short(value: float) -> str:
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e9 else f"{value:.4g}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _text(place: str, text: str, *, anchor: str, dx: int, dy: int) -> str:
    x, y = (float(part) for part in place.split(","))
    return f'<text x="{x + dx:.1f}" y="{y + dy:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
