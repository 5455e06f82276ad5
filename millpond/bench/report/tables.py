"""The tables of a report, for every format that shows them. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from millpond.bench.figures import PERCENTILES, WAITS_MS, Figures
from millpond.bench.records import Tried

MISSING = "–"
OUTCOMES = {"fits": "fits", "waits": "waits for room", "fails": "fails"}


@dataclass(frozen=True, slots=True)
class Table:
    """``note`` is said under it. The first ``words`` columns are texts, the rest are figures."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 2
    note: str = ""


def number(value: float | None, unit: str = "") -> str:
    """With about three digits."""
    if value is None:
        return MISSING
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}{unit}"


def share(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1%}"


def gibibytes(size_bytes: int | None) -> str:
    return MISSING if size_bytes is None else f"{size_bytes / 1024**3:.2f}"


def tables(found: Sequence[Figures]) -> list[Table]:
    made = [_throughput(found), _latencies(found)]
    if any(one.waits_within for one in found):
        made.append(_waits(found))
    return made


def _throughput(found: Sequence[Figures]) -> Table:
    columns: dict[str, Callable[[Figures], str]] = {
        "requests": lambda one: f"{one.requests:,}",
        "failed": lambda one: f"{one.failed:,}",
        "requests/s": lambda one: number(one.requests_per_s),
        "output tok/s": lambda one: number(one.output_tokens_per_s),
        "total tok/s": lambda one: number(one.total_tokens_per_s),
    }
    notes = []
    if any(one.goodput_per_s is not None for one in found):
        columns["goodput/s"] = lambda one: number(one.goodput_per_s)
        notes.append("Goodput: requests a second that met every latency limit.")
    if any(one.batch_rows is not None for one in found):
        columns["slot use"] = lambda one: share(one.slot_use)
        columns["rows in the batch"] = lambda one: number(one.batch_rows)
        notes.append("Slot use: the mean share of the slots that were decoding.")
    return Table("Throughput", _heads(columns), _rows(found, columns), note=" ".join(notes))


def _latencies(found: Sequence[Figures]) -> Table:
    columns: dict[str, Callable[[Figures], str]] = {}
    for name, head in (("ttft", "TTFT"), ("tpot", "TPOT"), ("e2e", "end to end")):
        columns[f"{head}, p50 / p90 / p99"] = partial(_percentiles, name)
    note = (
        "Milliseconds. TTFT: time to the first token; TPOT: time per output token after the first; "
        "end to end: to the last token."
    )
    return Table("Latency", _heads(columns), _rows(found, columns), note=note)


def _waits(found: Sequence[Figures]) -> Table:
    columns: dict[str, Callable[[Figures], str]] = {
        "queue wait, p50 / p90 / p99": partial(_percentiles, "wait")
    }
    for limit in WAITS_MS:
        columns[f"at most {limit} ms"] = partial(_within, limit)
    note = (
        "Milliseconds from acceptance to the claim by a worker: what the queue and its window add."
    )
    return Table("Added wait", _heads(columns), _rows(found, columns), note=note)


def frontier_table(tried: Sequence[Tried]) -> Table:
    rows = [
        [
            f"{one.length:,}",
            f"{one.batch:,}",
            OUTCOMES[one.outcome] + (f": {one.error}" if one.error else ""),
            MISSING if one.most_rows is None else f"{one.most_rows:,}",
            gibibytes(one.memory_bytes),
            gibibytes(one.planned_bytes),
        ]
        for one in tried
    ]
    heads = ("tokens a row", "rows", "tried", "rows side by side", "GiB seen", "GiB planned")
    note = (
        "Rows sent at once, prompt and output together of so many tokens each. GiB: the most that the "
        "worker was seen with while they ran, and what `millpond plan` says for torch on a card."
    )
    return Table("Batch and length", heads, rows, words=3, note=note)


def _heads(columns: dict[str, Callable[[Figures], str]]) -> list[str]:
    return ["target", "load", *columns]


def _rows(
    found: Sequence[Figures], columns: dict[str, Callable[[Figures], str]]
) -> list[list[str]]:
    return [[one.target, one.load, *(cell(one) for cell in columns.values())] for one in found]


def _within(limit_ms: int, one: Figures) -> str:
    return share(one.waits_within.get(limit_ms))


def _percentiles(name: str, one: Figures) -> str:
    values = [one.latency_ms(name, percent) for percent in PERCENTILES]
    return MISSING if None in values else " / ".join(map(number, values))
