"""``millpond run-batch``: a JSONL file of requests in, a JSONL file of results out."""

import asyncio
import contextlib
import tempfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from millpond.batch_file import BadLine, Row, error_line, keep_finished, output_line, read_rows
from millpond.batch_run import BatchRun, BatchTotals
from millpond.cli.options import (
    DtypeFlag,
    EngineFlag,
    ModelFlag,
    QueueFlag,
    RedisFlag,
    SetFlag,
    parse_assignments,
)
from millpond.connection import connect
from millpond.queue import JobQueue
from millpond.results import Results
from millpond.settings import Settings, load_settings
from millpond.stack import running_stack
from millpond.stack_events import StackEvent
from millpond.subscriptions import Subscriptions

READY_TIMEOUT_S = 1800.0


def run_batch(
    input_: Annotated[
        Path, typer.Option("--input", "-i", exists=True, dir_okay=False, help="Request lines.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", dir_okay=False, help="Result lines.")],
    model: ModelFlag = None,
    dtype: DtypeFlag = None,
    engine: EngineFlag = None,
    redis_url: RedisFlag = None,
    queue: QueueFlag = None,
    set_: SetFlag = None,
) -> None:
    """Run a file of OpenAI batch requests through the queue.

    Starts a server and a worker of its own unless --redis-url is given. Run again on the same files
    it does what is missing. Exit status 1 if any row failed.
    """
    if input_.resolve() == output.resolve():
        raise typer.BadParameter("must be another file than --input", param_hint="--output")
    settings = load_settings(
        parse_assignments(set_),
        model=model,
        dtype=dtype,
        engine=engine,
        redis_url=redis_url,
        queue=queue,
    )
    preset = settings.preset()
    rows, bad = _read(input_)
    done = keep_finished(output)
    missing = [row for row in rows if row.custom_id not in done]
    console = Console(stderr=True, highlight=False)
    if done:
        console.print(f"{len(rows) - len(missing)} of {len(rows)} rows are done already.")
    with output.open("ab") as out:
        for line in bad:
            out.write(error_line(line))
            console.print(f"[yellow]line {line.line_number}:[/yellow] {line.message}")
        out.flush()
        totals = BatchTotals()
        if missing:
            run_file = output.with_name(output.name + ".run")
            job = _run(settings, missing, out, totals, _run_id(run_file), preset.name, console)
            asyncio.run(job)
            run_file.unlink(missing_ok=True)
    failed = totals.failed + len(bad)
    print(
        f"rows {totals.rows + len(bad)}, failed {failed}, output tokens {totals.output_tokens}, "
        f"{totals.seconds:.2f} s, {totals.tokens_per_s:.1f} tok/s"
    )
    if failed:
        raise typer.Exit(1)


def _read(path: Path) -> tuple[list[Row], list[BadLine]]:
    rows: list[Row] = []
    bad: list[BadLine] = []
    with path.open("rb") as lines:
        for item in read_rows(lines):
            if isinstance(item, Row):
                rows.append(item)
            else:
                bad.append(item)
    return rows, bad


def _run_id(path: Path) -> str:
    """The id of the run that this output belongs to: that of an unfinished one, or a new one."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8")
    path.write_text(uuid.uuid4().hex, encoding="utf-8")
    return path.read_text(encoding="utf-8")


async def _run(
    settings: Settings,
    rows: list[Row],
    out: IO[bytes],
    totals: BatchTotals,
    run_id: str,
    model: str,
    console: Console,
) -> None:
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} tok/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    with progress:
        bar = progress.add_task("starting", total=len(rows), rate=0.0)
        async with _server_and_worker(settings, console) as redis_url:
            redis = connect(redis_url)
            subscriptions = Subscriptions(redis)
            batch = BatchRun(
                JobQueue(redis, settings.queue, settings.queue_options()),
                Results(redis, settings.queue, subscriptions),
                subscriptions,
                run_id,
            )
            progress.update(bar, description="running")
            async for row, result in batch.results(rows):
                totals.add(result)
                out.write(output_line(row, result, model))
                out.flush()
                progress.update(bar, advance=1, rate=totals.tokens_per_s)
            await subscriptions.close()
            await redis.aclose()


@contextlib.asynccontextmanager
async def _server_and_worker(settings: Settings, console: Console) -> AsyncIterator[str]:
    """The URL of the user's server, or of one that lives as long as this run."""
    if "redis_url" in settings.model_fields_set:
        yield settings.redis_url
        return

    def say(event: StackEvent) -> None:
        if event.level in ("warning", "error"):
            console.print(str(event), markup=False)

    with tempfile.TemporaryDirectory(prefix="millpond-batch-") as folder:
        own = settings.model_copy(update={"data_dir": Path(folder), "grace_s": 1.0})
        async with running_stack(own, embedded_server=True, api=False, say=say) as stack:
            await stack.wait_ready(READY_TIMEOUT_S)
            yield stack.redis_url
