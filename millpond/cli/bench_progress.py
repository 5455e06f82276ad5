"""What ``millpond bench`` shows while it runs: a bar for the load, a line for each that has ended."""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from millpond.bench.driver import Bounds, Driven
from millpond.bench.figures import figures
from millpond.bench.loads import Load
from millpond.bench.records import LoadRun, Tried
from millpond.bench.report.tables import OUTCOMES, gibibytes, number
from millpond.bench.run import Shown
from millpond.local.stack_events import StackEvent


class BenchProgress(Shown):
    def __init__(self, console: Console, bounds: Bounds, rounds: int) -> None:
        self._bounds = bounds
        self._rounds = rounds
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[pace]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._bar: TaskID = self._progress.add_task("", total=1.0, pace="", visible=False)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        with self._progress:
            yield

    def say(self, event: StackEvent) -> None:
        self.line(str(event))

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def opening(self, place: str, round: int) -> None:
        self._reset(f"{place}{self._of_rounds(round)}: starting")

    def loading(self, target: str, load: Load, round: int) -> None:
        self._reset(f"{target}{self._of_rounds(round)}: {load}")

    def watch(self, driven: Driven) -> None:
        took_s = time.perf_counter() - driven.began_s
        done = len(driven.done)
        part = max(done / self._bounds.requests, min(1.0, took_s / self._bounds.seconds))
        pace = f"{done} done, {driven.running} running"
        if driven.failed:
            pace += f", {driven.failed} failed"
        if took_s > 0:
            pace += f", {number(driven.tokens / took_s)} tok/s"
        self._progress.update(self._bar, completed=part, pace=pace)

    def ended(self, run: LoadRun) -> None:
        made = figures([run], {})
        ttft = number(made.latency_ms("ttft", 50), " ms")
        failed = f", {made.failed} FAILED" if made.failed else ""
        self.line(
            f"{run.target}{self._of_rounds(run.round)}: {run.load}: {made.requests} requests{failed}, "
            f"{number(made.output_tokens_per_s)} tok/s, first token {ttft}"
        )

    def tried(self, one: Tried) -> None:
        planned = f", {gibibytes(one.planned_bytes)} planned" if one.planned_bytes else ""
        self.line(
            f"{one.batch} rows of {one.length} tokens: {OUTCOMES[one.outcome]}, "
            f"{one.most_rows} side by side, {gibibytes(one.memory_bytes)} GiB seen{planned}"
            + (f": {one.error}" if one.error else "")
        )

    def _reset(self, description: str) -> None:
        self._progress.reset(self._bar, total=1.0, description=description, pace="", visible=True)

    def _of_rounds(self, round: int) -> str:
        return f" {round}/{self._rounds}" if self._rounds > 1 else ""
