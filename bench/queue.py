"""``python -m bench.queue``: the queue's figures, each beside RQ's in the same run.

One embedded server in a temporary folder, this process and RQ's in turn; medians of alternated rounds.
Exits 0 whatever the figures are: they are to be read, on a machine that does nothing else.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path

import orjson
import uvloop
from rich.console import Console
from rich.table import Table

from bench.api_load import measure_api
from bench.backlog import measure_backlog
from bench.draining import measure_draining
from bench.measure import ROUNDS, Figure
from bench.memory import measure_memory
from bench.memory_finished import measure_finished
from bench.stage import Stage, stage
from bench.submitting import measure_one_at_a_time, measure_pipelined

BACKLOG = 1_000_000


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.queue", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument(
        "--backlog", type=int, default=BACKLOG, help="jobs of the long queue (%(default)s)"
    )
    parser.add_argument("--only", metavar="NAME", help="measure one part only")
    return parser.parse_args()


async def measure(options: argparse.Namespace, console: Console) -> list[Figure]:
    parts: dict[str, Callable[[Stage], Awaitable[list[Figure]]]] = {
        "pipelined": measure_pipelined,
        "one": measure_one_at_a_time,
        "worker": measure_draining,
        "memory": measure_memory,
        "finished": measure_finished,
        "api": measure_api,
        "backlog": lambda on: measure_backlog(on, options.backlog),
    }
    if options.only is not None:
        parts = {options.only: parts[options.only]}
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="millpond-bench-") as folder:
        async with stage(Path(folder)) as on:
            for name, part in parts.items():
                # No spinner: its thread would be measured too.
                console.print(f"measuring: {name}", style="dim")
                figures += await part(on)
    return figures


def table(figures: list[Figure], seconds: float) -> Table:
    table = Table(
        title="The queue beside RQ",
        caption=f"medians of {ROUNDS} alternated rounds, {seconds:.0f} s",
    )
    for column in ("", "Millpond", "beside", "ratio", "target", ""):
        table.add_column(column, justify="left" if column == "" else "right")
    marks = {True: "[green]reached", False: "[red]missed", None: ""}
    for f in figures:
        table.add_row(f.name, f.ours, f.peer, f.value, f.target, marks[f.met])
    return table


def main() -> int:
    options = arguments()
    console = Console(width=None if sys.stdout.isatty() else 150)
    start = time.perf_counter()
    figures = uvloop.run(measure(options, console))
    console.print(table(figures, time.perf_counter() - start))
    if options.json is not None:
        options.json.write_bytes(
            orjson.dumps([asdict(f) for f in figures], option=orjson.OPT_INDENT_2)
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
