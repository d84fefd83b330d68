"""Line charts as SVG, drawn from numbers alone: no script, no font to fetch, colours of the page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 560, 300, 62, 48, 28, 16
MOST_POINTS = 400
WIDE = 30  # times the least number: from there on the axis goes up by powers
LINE_OF_TEXT = 16


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


def line_chart(
    title: str, lines: Mapping[str, Points], *, levels: Mapping[str, float] | None = None, unit: str = ""
) -> Chart | None:
    """Return a chart of lines of (step, y) points and of horizontal levels; None if nothing finite is to be drawn.

    Where all heights are above 0 and the largest is 30 times the least, equal factors are equal distances.

    Args:
        title: What is drawn; also the text that a screen reader has.
        lines: Points by name, steps ascending.
        levels: Heights by name, drawn dashed from end to end, each with its name at the line.
        unit: What the heights are, above the axis.
    """
    drawn = {name: _finite(points) for name, points in lines.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    heights = {name: y for name, y in (levels or {}).items() if math.isfinite(y)}
    if not drawn:
        return None
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points] + list(heights.values())
    by_powers = min(ys) > 0 and max(ys) >= WIDE * min(ys)
    across, up = _axis(min(xs), max(xs)), (_powers if by_powers else _axis)(min(ys), max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        low, high, here = (math.log(each) if by_powers else each for each in (up[0], up[-1], y))
        left = LEFT + (x - across[0]) / (across[-1] - across[0]) * (WIDTH - LEFT - RIGHT)
        return left, HEIGHT - BOTTOM - (here - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    left, bottom = place(across[0], up[0])
    parts = [_text(4, TOP - 14, unit + (", by powers" if by_powers else ""), anchor="start")] if unit else []
    for y in up:
        parts.append(_polyline("grid", [place(across[0], y), place(across[-1], y)]))
        parts.append(_text(left - 8, place(across[0], y)[1] + 5, short(y), anchor="end"))
    parts += [_text(place(x, up[0])[0], bottom + 20, short(x), anchor=_anchor(x, across)) for x in across]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "optimiser steps", anchor="middle"))
    legend = []
    for number, (name, points) in enumerate(drawn.items()):
        colour = number % 4 + 1
        step = -(-len(points) // MOST_POINTS)
        shown = [place(x, y) for x, y in [*points[::step], points[-1]]]
        parts.append(_polyline(f"line c{colour}", shown))
        parts.append(f'<circle class="c{colour}" cx="{shown[-1][0]:.1f}" cy="{shown[-1][1]:.1f}" r="3"/>')
        legend.append((name, short(points[-1][1]), colour))
    parts += _levels({name: [place(x, y) for x in (across[0], across[-1])] for name, y in heights.items()}, heights)
    label = escape(title, quote=True)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return Chart(title, svg, tuple(legend))


def _levels(ends: Mapping[str, Sequence[tuple[float, float]]], heights: Mapping[str, float]) -> list[str]:
    """Return dashed lines with their names at the right, those that lie close moved apart."""
    parts, taken = [], math.inf
    for name, (begin, end) in sorted(ends.items(), key=lambda each: -each[1][0][1]):
        parts.append(_polyline("line level", [begin, end]))
        taken = min(end[1] - 5, taken - LINE_OF_TEXT)
        parts.append(_text(end[0], taken, f"{name} {short(heights[name])}", anchor="end", kind="named"))
    return parts


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


def _powers(low: float, high: float) -> list[float]:
    """Return the powers of ten, with 2 and 5 times them where they are few, around two numbers above 0.

    >>> _powers(0.003, 0.4)
    [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
    >>> _powers(1, 2e6)
    [1.0, 10.0, 100.0, 1000.0, 10000.0, 100000.0, 1000000.0, 10000000.0]
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    marks = [float(f"{factor}e{power}") for power in range(first, last + 1) for factor in factors]
    begin = max(number for number, mark in enumerate(marks) if mark <= low)
    end = min(number for number, mark in enumerate(marks) if mark >= high)
    return marks[begin : end + 1]


def short(value: float) -> str:
    """Return a number as an axis shows it, of four digits at most.

    >>> short(3000), short(1500), short(2.5e6), short(0.25), short(0.00003), short(0)
    ('3k', '1.5k', '2.5M', '0.25', '3e-5', '0')
    """
    size = abs(value)
    for limit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit * 0.99995:
            return f"{value / limit:.4g}{name}"
    if 0 < size < 1e-3:
        digits, _, power = f"{value:.3g}".partition("e") if size < 1e-4 else (f"{value:.3g}", "", "")
        return f"{digits}e{int(power)}" if power else digits
    return f"{value:.4g}"


def _anchor(x: float, across: Sequence[float]) -> str:
    return "end" if x == across[-1] else "middle"


def _polyline(kind: str, points: Sequence[tuple[float, float]]) -> str:
    return f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _text(x: float, y: float, text: str, *, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
