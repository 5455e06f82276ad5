"""One screen, drawn for a terminal of this size. Pure."""

import time
from collections.abc import Collection, Iterable, Sequence

from rich import box
from rich.console import Group, JustifyMethod, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from millpond.messages import JobStatus, Priority
from millpond.messages.worker_state import RegisteredWorker, WorkerPhase
from millpond.queue.results import QueueState
from millpond.top.gathering import Shown
from millpond.top.history import Ending, History, percentile

WIDE_COLUMNS = 110
BAR_CHARS = 16
SPARKS = "▁▂▃▄▅▆▇█"
FRAME_LINES = 2
# Of the two tables, so that much must be left for the endings.
LEAST_ENDINGS = 3
_STATUS_STYLES = {
    JobStatus.SUCCEEDED: "green",
    JobStatus.FAILED: "red",
    JobStatus.CANCELLED: "yellow",
    JobStatus.EXPIRED: "yellow",
}
_PHASE_STYLES = {
    WorkerPhase.READY: "green",
    WorkerPhase.LOADING: "yellow",
    WorkerPhase.DRAINING: "yellow",
    WorkerPhase.HUNG: "bold red",
}


def draw(
    shown: Shown, history: History, server: str, *, width: int, height: int, paused: bool
) -> RenderableType:
    wide = width >= WIDE_COLUMNS
    workers = [(name, worker) for name, state in shown.queues.items() for worker in state.workers]
    # Title, two lines of throughput and latency, frames and heads of three tables.
    left = height - 3 - 3 * (FRAME_LINES + 1) - len(shown.queues) - LEAST_ENDINGS
    workers_shown = workers[: max(1, left)]
    endings = list(history.endings)[::-1]
    room = left - len(workers_shown) + LEAST_ENDINGS
    return Group(
        _title(server, shown, paused=paused),
        *_figures(shown, history, width, wide=wide),
        _panel(_queues(shown, wide=wide), "queues"),
        _panel(_workers(workers_shown, wide=wide), _more("workers", workers, workers_shown)),
        _panel(_endings(endings[: max(0, room)], shown.now_s, wide=wide), "recent endings"),
    )


def _panel(content: RenderableType, title: str) -> Panel:
    return Panel(content, title=title, title_align="left", box=box.ROUNDED, border_style="dim")


def _more(title: str, all_of: Sequence[object], shown: Sequence[object]) -> str:
    hidden = len(all_of) - len(shown)
    return f"{title}, {hidden} more" if hidden else title


def _title(server: str, shown: Shown, *, paused: bool) -> Text:
    line = Text.assemble(("millpond top", "bold"), f"  {server}  {time.strftime('%H:%M:%S')}")
    line.append("  q quit  p pause", "dim")
    if paused:
        line.append("  PAUSED", "bold yellow")
    if shown.trouble is not None:
        line.append(f"  {shown.trouble}", "bold red")
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _figures(shown: Shown, history: History, width: int, *, wide: bool) -> Iterable[Text]:
    tokens = sum(
        w.state.tokens_per_s for state in shown.queues.values() for w in state.workers if w.alive
    )
    jobs = history.jobs_per_s(shown.now_s)
    line = Text(f" {jobs:,.1f} jobs/s   {tokens:,.0f} tokens/s   ")
    room = max(0, min(60, width - len(line) - 1))
    line.append(sparkline(history.jobs_each_second()[-room:]), "cyan")
    yield line
    ran = [e for e in history.last_minute(shown.now_s) if e.wait_ms is not None]
    parts = [
        ("wait", [e.wait_ms for e in ran if e.wait_ms is not None]),
        ("first token", [_since_accepted(e, e.first_token_ms) for e in ran]),
        ("end", [_since_accepted(e, e.run_ms) for e in ran]),
    ]
    shares, slash = ((0.5, 0.9, 0.99), " / ") if wide else ((0.5, 0.9), "/")
    heading = slash.join(f"p{share * 100:.0f}" for share in shares)
    told = "   ".join(
        f"{name} {slash.join(_time(percentile(values, share)) for share in shares)}"
        for name, values in parts
    )
    yield Text(f" {heading}   {told}", "" if ran else "dim", no_wrap=True, overflow="ellipsis")


def _since_accepted(ending: Ending, ms: float | None) -> float:
    return (ending.wait_ms or 0.0) + (ms or 0.0)


def _queues(shown: Shown, *, wide: bool) -> Table:
    numbers = (*Priority, "next waits", "running", "dead")
    table = _table("queue", *(("model",) if wide else ()), *numbers, right=numbers)
    for name, state in shown.queues.items():
        waits_ms = max(state.waiting_ms.values())
        model = (_model(state),) if wide else ()
        queued = [_number(state.queued[priority]) for priority in Priority]
        table.add_row(
            name,
            *model,
            *queued,
            _time(waits_ms) if state.depth else "",
            _number(state.running),
            Text(str(state.dead), "red") if state.dead else "",
        )
    return table


def _model(state: QueueState) -> str:
    return next((worker.state.model for worker in state.workers), "")


def _workers(workers: Sequence[tuple[str, RegisteredWorker]], *, wide: bool) -> RenderableType:
    if not workers:
        return Text("no worker has signed on", "yellow")
    more = ("queue", "made with") if wide else ()
    numbers = ("jobs/s", "tok/s")
    table = _table("worker", "state", "slots", "taken", *more, *numbers, right=("taken", *numbers))
    for queue, worker in workers:
        own = worker.state
        slots = own.slots or 0
        cells: list[str | Text] = [worker.id, _state(worker)]
        cells += [bar(own.rows, slots), f"{own.rows}/{slots or '?'}"]
        if wide:
            cells += [queue, own.made_with]
        table.add_row(*cells, f"{own.jobs_per_s:,.1f}", f"{own.tokens_per_s:,.0f}")
    return table


def _state(worker: RegisteredWorker) -> Text:
    if not worker.alive:
        return Text(f"silent {worker.beat_age_ms / 1000:.0f} s", "red")
    return Text(worker.state.state, _PHASE_STYLES[worker.state.state])


def _endings(endings: Sequence[Ending], now_s: float, *, wide: bool) -> RenderableType:
    if not endings:
        return Text("none since this began", "dim")
    numbers = ("wait", *(("first token",) if wide else ()), "ran", "tokens")
    numbers += ("tok/s",) if wide else ()
    queue = ("queue",) if wide else ()
    table = _table("ago", "id", *queue, "status", "why", *numbers, right=("ago", *numbers))
    for ending in endings:
        rate = 1000 * ending.tokens / ending.run_ms if ending.run_ms else None
        table.add_row(
            f"{now_s - ending.at_s:.0f} s",
            ending.id,
            *((ending.queue,) if wide else ()),
            Text(ending.status, _STATUS_STYLES[ending.status]),
            ending.reason,
            _time(ending.wait_ms),
            *((_time(ending.first_token_ms),) if wide else ()),
            _time(ending.run_ms),
            _number(ending.tokens),
            *((("" if rate is None else f"{rate:,.0f}"),) if wide else ()),
        )
    return table


def _table(*headings: str, right: Collection[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=False)
    for heading in headings:
        justify: JustifyMethod = "right" if heading in right else "left"
        table.add_column(heading, no_wrap=True, overflow="ellipsis", justify=justify)
    return table


def bar(rows: int, slots: int) -> Text:
    """How many of the slots are taken."""
    full = min(BAR_CHARS, -(-BAR_CHARS * rows // slots)) if slots else 0
    return Text.assemble(("█" * full, "cyan"), ("░" * (BAR_CHARS - full), "dim"))


def sparkline(values: Sequence[float]) -> str:
    """The values as heights, the greatest being the tallest."""
    most = max(values, default=0.0)
    if most <= 0:
        return SPARKS[0] * len(values)
    return "".join(SPARKS[min(7, int(value / most * 8))] for value in values)


def _number(value: int) -> str:
    return f"{value:,}" if value else ""


def _time(ms: float | None) -> str:
    if ms is None:
        return "-"
    if ms < 1000:
        return f"{ms:.0f} ms"
    if ms < 120_000:
        return f"{ms / 1000:.1f} s"
    return f"{ms / 60_000:.0f} min"
