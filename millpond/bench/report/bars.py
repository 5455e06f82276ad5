"""Bar charts as SVG: one figure of several targets. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from millpond.bench.report.charts import COLOURS, WIDTH, label

ROW = 44
BAR = 16
# Room for the figure behind the longest bar.
RIGHT = 70


@dataclass(frozen=True, slots=True)
class Bars:
    """Values by target, in order; each with the colour that the target has in the other charts."""

    part: str
    title: str
    y_title: str
    values: Sequence[tuple[str, float]]


def bars_svg(chart: Bars) -> str:
    """Names stand above their bars, so that long ones have room."""
    most = max(value for _, value in chart.values) or 1.0
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {ROW * len(chart.values) + 6}" role="img" '
        f'aria-label="{escape(chart.title)}">'
    ]
    for i, (name, value) in enumerate(chart.values):
        width = max(1.0, value / most * (WIDTH - RIGHT))
        y = ROW * i
        parts += [
            f'<text x="0" y="{y + 15}">{escape(name)}</text>',
            f'<rect class="bar c{i % COLOURS}" x="0" y="{y + 22}" width="{width:.1f}" '
            f'height="{BAR}" rx="2"/>',
            f'<text x="{width + 8:.1f}" y="{y + 35}">{label(value)}</text>',
        ]
    return "".join([*parts, "</svg>"])
