"""Which charts a report has. Pure."""

from collections.abc import Mapping, Sequence

from millpond.bench.figures import Figures, latencies
from millpond.bench.records import LoadRun
from millpond.bench.report.bars import Bars
from millpond.bench.report.charts import Chart, Line

# Points of the line that shows a distribution.
_POINTS = 100
_LATENCY_CHARTS = (
    ("ttft", "Time to the first token"),
    ("tpot", "Time per output token"),
    ("e2e", "End to end"),
    ("wait", "Queue wait"),
)


def charts(found: Sequence[Figures], runs: Sequence[LoadRun]) -> list[Chart | Bars]:
    """By load, for closed and open loops apart, and the distributions at the heaviest load of each kind.

    Several targets under one load are shown as bars.
    """
    made: list[Chart | Bars] = []
    for kind, part, x_title in (
        ("closed", "Closed loop", "requests at once"),
        ("open", "Open loop", "requests sent per second"),
    ):
        some = [one for one in found if one.kind == kind]
        if len({one.level for one in some}) > 1:
            made += _by_level(some, part, x_title, log_x=kind == "closed")
        elif len(some) > 1:
            rates = [(one.target, one.output_tokens_per_s) for one in some]
            made.append(
                Bars(part, f"Throughput at {some[0].load}", "output tokens a second", rates)
            )
        if some:
            made += _distributions(some, part, runs)
    return made


def _by_level(found: Sequence[Figures], part: str, x_title: str, *, log_x: bool) -> list[Chart]:
    targets = _targets(found)
    steps = sorted({one.level for one in found})

    def chart(title: str, y_title: str, lines: Sequence[Line]) -> Chart:
        drawn = [line for line in lines if line.points]
        return Chart(part, title, x_title, y_title, drawn, log_x, steps)

    def by_level(
        value: Mapping[str, list[tuple[float, float]]], suffix: str, dash: int
    ) -> list[Line]:
        return [
            Line(f"{target}{suffix}", value[target], colour, dash)
            for target, colour in targets.items()
        ]

    rates = {
        target: [(o.level, o.output_tokens_per_s) for o in found if o.target == target]
        for target in targets
    }
    made = [chart("Throughput", "output tokens a second", by_level(rates, "", 0))]
    good = {
        target: [
            (o.level, o.goodput_per_s)
            for o in found
            if o.target == target and o.goodput_per_s is not None
        ]
        for target in targets
    }
    if any(good.values()):
        made.append(chart("Goodput", "requests a second within the limits", by_level(good, "", 0)))
    for name, title in _LATENCY_CHARTS:
        lines: list[Line] = []
        for dash, percent in enumerate((50, 99)):
            points = {
                target: [
                    (o.level, value)
                    for o in found
                    if o.target == target and (value := o.latency_ms(name, percent)) is not None
                ]
                for target in targets
            }
            lines += by_level(points, f", p{percent}", dash)
        if any(line.points for line in lines):
            made.append(chart(title, "milliseconds", lines))
    return made


def _distributions(found: Sequence[Figures], part: str, runs: Sequence[LoadRun]) -> list[Chart]:
    """Which share of the requests was at least as fast."""
    heaviest = max(found, key=lambda one: one.level)
    made = []
    for name, title in (("ttft", "Time to the first token"), ("wait", "Queue wait")):
        lines = []
        for target, colour in _targets(found).items():
            some = [r for r in runs if r.target == target and str(r.load) == heaviest.load]
            values = sorted(v for run in some for v in latencies(run.requests, name))
            if values:
                lines.append(Line(target, _shares(values), colour))
        if lines:
            head = f"{title} at {heaviest.load}"
            made.append(Chart(part, head, "milliseconds", "% of the requests within it", lines))
    return made


def _shares(ordered: Sequence[float]) -> list[tuple[float, float]]:
    count = min(_POINTS, len(ordered))
    places = [round(i * (len(ordered) - 1) / max(1, count - 1)) for i in range(count)]
    return [(ordered[place], 100 * (place + 1) / len(ordered)) for place in places]


def _targets(found: Sequence[Figures]) -> dict[str, int]:
    """Each with its colour."""
    return {target: i for i, target in enumerate(dict.fromkeys(one.target for one in found))}
