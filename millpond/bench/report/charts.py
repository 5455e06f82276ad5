"""Line charts as SVG, drawn from figures alone. Pure.

Colours and text follow the page's style sheet, so that a chart is right in light and in dark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 280
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 14, 40
TICKS = 5
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
    top_y = nice_top(max(y for _, y in points))
    if chart.steps:
        scale = _Scale(min(chart.steps), max(chart.steps), top_y, chart.log_x)
    else:
        scale = _Scale(0.0, nice_top(max(x for x, _ in points)), top_y, log_x=False)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">',
        *_grid(scale),
        *_x_axis(chart, scale),
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


def nice_top(most: float) -> float:
    """A round number, at least as much, that `TICKS` round steps divide."""
    if most <= 0:
        return 1.0
    step = most / TICKS
    power = 10.0 ** math.floor(math.log10(step))
    factor = next(f for f in (1, 2, 2.5, 5, 10, 20) if f * power >= step * (1 - 1e-9))
    return factor * power * TICKS


def label(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _grid(scale: _Scale) -> list[str]:
    parts = []
    for i in range(TICKS + 1):
        value = scale.top_y * i / TICKS
        y = scale.y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{label(value)}</text>'
        )
    return parts


def _x_axis(chart: Chart, scale: _Scale) -> list[str]:
    span = scale.high_x - scale.low_x
    values = sorted(chart.steps) or [scale.low_x + span * i / TICKS for i in range(TICKS + 1)]
    parts, last = [], -math.inf
    for value in values:
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
