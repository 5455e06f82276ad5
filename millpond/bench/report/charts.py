"""Line charts as SVG, drawn from figures alone. Pure.

Colours and text follow the page's style sheet, so that a chart is right in light and in dark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 280
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 14, 40
# Steps of an axis, as many as suit its values.
TICKS = (5, 4, 6)
COLOURS = 6


@dataclass(frozen=True, slots=True)
class Line:
    """Points by x; ``colour`` is the number of a colour of the page, ``dash`` tells lines of one colour
    apart."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    dash: int = 0


@dataclass(frozen=True, slots=True)
class Chart:
    """``log_x``: every doubling is as wide. ``steps`` are the only values that x has, marked one by one;
    without them x begins at 0. Charts of one ``part`` stand together."""

    part: str
    title: str
    x_title: str
    y_title: str
    lines: Sequence[Line]
    log_x: bool = False
    steps: Sequence[float] = ()


def svg(chart: Chart) -> str:
    """Empty for a chart without points."""
    points = [point for line in chart.lines for point in line.points]
    if not points:
        return ""
    marks_y = ticks(max(y for _, y in points))
    marks_x = sorted(chart.steps) or ticks(max(x for x, _ in points))
    scale = _Scale(marks_x[0], marks_x[-1], marks_y[-1], chart.log_x and bool(chart.steps))
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">',
        *_grid(scale, marks_y),
        *_x_axis(scale, marks_x),
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">'
        f"{escape(chart.x_title)}</text>",
        *(part for line in chart.lines for part in _line(line, scale, marked=bool(chart.steps))),
        "</svg>",
    ]
    return "".join(parts)


@dataclass(frozen=True, slots=True)
class _Scale:
    low_x: float
    high_x: float
    top_y: float
    log_x: bool

    def x(self, value: float) -> float:
        low, high = (
            (math.log(self.low_x), math.log(self.high_x))
            if self.log_x
            else (self.low_x, self.high_x)
        )
        place = math.log(value) if self.log_x else value
        part = 0.5 if high == low else (place - low) / (high - low)
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - value / self.top_y * (HEIGHT - TOP - BOTTOM)


def ticks(most: float) -> list[float]:
    """Round numbers from 0 to at least as much, with as little room above it as round steps leave."""
    if most <= 0:
        return [0.0, 1.0]
    choices = []
    for number in TICKS:
        step = most / number
        power = 10.0 ** math.floor(math.log10(step))
        factor = next(f for f in (1, 2, 2.5, 5, 10, 20) if f * power >= step * (1 - 1e-9))
        choices.append([i * factor * power for i in range(number + 1)])
    return min(choices, key=lambda values: values[-1])


def label(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _grid(scale: _Scale, marks: Sequence[float]) -> list[str]:
    parts = []
    for value in marks:
        y = scale.y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{label(value)}</text>'
        )
    return parts


def _x_axis(scale: _Scale, marks: Sequence[float]) -> list[str]:
    parts, last = [], -math.inf
    for value in marks:
        x = scale.x(value)
        if x - last < 30:  # no label over another
            continue
        last = x
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">'
            f"{label(value)}</text>"
        )
    return parts


def _line(line: Line, scale: _Scale, *, marked: bool) -> list[str]:
    places = [(scale.x(x), scale.y(y)) for x, y in line.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    style = f"c{line.colour % COLOURS} d{line.dash}"
    parts = [f'<path class="line {style}" d="{path}"><title>{escape(line.name)}</title></path>']
    if marked:
        for (x, y), (at, value) in zip(places, line.points, strict=True):
            told = escape(f"{line.name}: {label(value)} at {label(at)}")
            parts.append(
                f'<circle class="dot c{line.colour % COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="3.2">'
                f"<title>{told}</title></circle>"
            )
    return parts
