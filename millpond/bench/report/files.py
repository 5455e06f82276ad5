"""Writes a report into a folder, and reads one back."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from pydantic import ValidationError

from millpond.bench.comparing import CONFIDENCE, Moved
from millpond.bench.figures import figures, group_runs
from millpond.bench.records import Record
from millpond.bench.report.bars import Bars, bars_svg
from millpond.bench.report.charts import svg
from millpond.bench.report.facts import facts, tiles, warnings
from millpond.bench.report.plots import charts
from millpond.bench.report.tables import Table, frontier_table, number, tables
from millpond.bench.report.text import as_csv, as_markdown
from millpond.errors import InvalidRequestError

TITLE = "What this machine can do"


def write_report(record: Record, moved: Sequence[Moved], folder: Path) -> list[Path]:
    """``report.json``, ``.html``, ``.md`` and ``.csv`` in a folder that is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "report.json": record.model_dump_json(exclude_none=True) + "\n",
        **_shown(record, moved),
    }
    written = []
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
        written.append(folder / name)
    return written


def _shown(record: Record, moved: Sequence[Moved]) -> dict[str, str]:
    found = [figures(runs, record.setup.limits_ms) for runs in group_runs(record.runs)]
    shown = tables(found) if found else []
    if record.frontier:
        shown.append(frontier_table(record.frontier))
    if moved:
        shown.insert(0, moved_table(moved))
    about = facts(record)
    drawn = [
        (chart, bars_svg(chart) if isinstance(chart, Bars) else svg(chart))
        for chart in charts(found, record.runs)
    ]
    page = _page().render(
        title=TITLE,
        command=record.setup.command,
        began_at=record.began_at,
        warnings=warnings(record, found),
        tiles=tiles(found),
        charts=drawn,
        tables=shown,
        facts=about,
    )
    return {
        "report.html": page,
        "report.md": as_markdown(TITLE, about, shown, warnings(record, found)),
        "report.csv": as_csv(found),
    }


def read_record(field: str, path: Path) -> Record:
    """Raises InvalidRequestError naming ``field`` for a file that is no report of this command."""
    try:
        return Record.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidRequestError(field, f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidRequestError(
            field, f"{path} is no report.json of millpond bench: {place}: {first['msg']}"
        ) from error


def moved_table(moved: Sequence[Moved]) -> Table:
    rows = [
        [
            *(one.target, one.load, one.metric, number(one.old), number(one.new)),
            f"{one.ratio - 1:+.1%}",
            f"{one.low - 1:+.1%} to {one.high - 1:+.1%}",
            one.verdict,
        ]
        for one in moved
    ]
    heads = ("target", "load", "metric", "old", "new", "change", "interval", "")
    note = (
        f"Interval: {CONFIDENCE:.0%}, by a bootstrap over blocks of time. Noise: the interval contains no "
        "change, or the change is below 2%. Tokens are counted until the last request was sent. With "
        "one round on each side, a machine that drifted between "
        "the two runs looks like a change."
    )
    return Table("What moved", heads, rows, words=3, note=note)


def _page() -> Template:
    environment = Environment(
        loader=PackageLoader("millpond.bench.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")
