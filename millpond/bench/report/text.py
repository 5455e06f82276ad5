"""A report as Markdown and as CSV. Pure."""

import csv
import io
from collections.abc import Mapping, Sequence

from millpond.bench.figures import LATENCIES, PERCENTILES, WAITS_MS, Figures
from millpond.bench.report.tables import Table


def as_markdown(
    title: str, facts: Mapping[str, str], tables: Sequence[Table], warnings: Sequence[str]
) -> str:
    parts = [f"# {title}", ""]
    for warning in warnings:
        parts += [warning, ""]
    parts += [*(f"- **{name}**: {_safe(value)}" for name, value in facts.items())]
    for table in tables:
        parts += ["", f"## {table.title}", "", *_markdown_lines(table)]
        if table.note:
            parts += ["", table.note]
    return "\n".join(parts) + "\n"


def _markdown_lines(table: Table) -> list[str]:
    marks = ["---" if i < table.words else "---:" for i in range(len(table.heads))]
    rows = [table.heads, marks, *table.rows]
    return ["| " + " | ".join(map(_safe, row)) + " |" for row in rows]


def _safe(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def as_csv(found: Sequence[Figures]) -> str:
    """A line for each load on each target; empty cells for what could not be known."""
    plain = (
        *("target", "load", "level", "requests", "failed", "requests_per_s", "output_tokens_per_s"),
        *("total_tokens_per_s", "goodput_per_s", "slot_use", "batch_rows"),
        *("mean_prompt_tokens", "mean_output_tokens"),
    )
    percents = [(name, percent) for name in LATENCIES for percent in PERCENTILES]
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(
        [
            *plain,
            *(f"{name}_p{percent}_ms" for name, percent in percents),
            *(f"share_waiting_at_most_{limit}_ms" for limit in WAITS_MS),
        ]
    )
    for one in found:
        lines.writerow(
            [
                *(getattr(one, name) for name in plain),
                *(one.latency_ms(name, percent) for name, percent in percents),
                *(one.waits_within.get(limit) for limit in WAITS_MS),
            ]
        )
    return out.getvalue()
