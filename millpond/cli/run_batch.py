"""``millpond run-batch``: a JSONL file of requests in, a JSONL file of results out."""

import asyncio
import contextlib
import functools
import uuid
from pathlib import Path
from typing import IO, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from millpond.batches.flight import Place
from millpond.batches.run import BatchRun, BatchTotals
from millpond.cli.batch_place import batch_place
from millpond.cli.options import (
    DataFlag,
    DtypeFlag,
    EngineFlag,
    ModelFlag,
    QueueFlag,
    RedisFlag,
    SetFlag,
    parse_assignments,
)
from millpond.openai.batch_file import (
    BadLine,
    Row,
    error_line,
    keep_finished,
    output_line,
    read_rows,
    split_lines,
)
from millpond.queue.connection import connect
from millpond.queue.job_queue import JobQueue
from millpond.queue.results import Results
from millpond.queue.subscriptions import Subscriptions
from millpond.settings import Settings, load_settings

READ_BYTES = 1024 * 1024


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
    data: DataFlag = None,
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Run lines that ask for another model, too.")
    ] = False,
    set_: SetFlag = None,
) -> None:
    """Run a file of OpenAI batch requests through the queue.

    Uses the server of --redis-url, else the stack that runs in the data folder if it serves the same
    model in the same way, else starts a server and a worker of its own. Run again on the same files it
    does what is missing. Exit status 1 if any row failed.
    """
    if not output.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {output.parent}", param_hint="--output")
    if input_.resolve() == output.resolve():
        raise typer.BadParameter("must be another file than --input", param_hint="--output")
    settings = load_settings(
        parse_assignments(set_),
        model=model,
        dtype=dtype,
        engine=engine,
        redis_url=redis_url,
        queue=queue,
        data_dir=data,
    )
    settings.preset()  # a wrong model is told before anything is written
    rows, bad = _read(input_, any_model=any_model)
    earlier = keep_finished(output)
    missing = [row for row in rows if row.custom_id not in earlier.done]
    new_bad = [line for line in bad if line.line_number not in earlier.bad_lines]
    console = Console(stderr=True, highlight=False)
    if earlier.done:
        console.print(f"{len(rows) - len(missing)} of {len(rows)} rows are done already.")
    with output.open("ab") as out:
        for line in bad:
            out.write(error_line(line))
            console.print(f"[yellow]line {line.line_number}:[/yellow] {line.message}")
        out.flush()
        totals = BatchTotals()
        if missing:
            run_file = output.with_name(output.name + ".run")
            asyncio.run(_run(settings, missing, out, totals, _run_id(run_file), console))
            run_file.unlink(missing_ok=True)
    # Of this run: a line that an earlier one told as bad is no row of it, but the file is still not right.
    print(
        f"rows {totals.rows + len(new_bad)}, failed {totals.failed + len(new_bad)}, "
        f"output tokens {totals.output_tokens}, "
        f"{totals.seconds:.2f} s, {totals.tokens_per_s:.1f} tok/s"
    )
    if totals.failed or bad:
        raise typer.Exit(1)


def _read(path: Path, *, any_model: bool) -> tuple[list[Row], list[BadLine]]:
    rows: list[Row] = []
    bad: list[BadLine] = []
    with path.open("rb") as file:
        blocks = iter(functools.partial(file.read, READ_BYTES), b"")
        for item in read_rows(split_lines(blocks), any_model=any_model):
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
    console: Console,
) -> None:
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}"),
        TimeRemainingColumn(),
        console=console,
    )
    with progress:
        bar = progress.add_task("starting", total=len(rows), pace="")
        async with batch_place(settings, console) as place:
            redis = connect(place.redis_url, place.queue)
            subscriptions = Subscriptions(redis)
            queue = Place(
                JobQueue(redis, place.queue, settings.queue_options()),
                Results(redis, place.queue, subscriptions),
            )
            batch = BatchRun(queue, subscriptions, run_id)
            progress.update(bar, description="running")
            async for row, result in batch.results(rows):
                totals.add(result)
                out.write(output_line(row, result))
                out.flush()
                # The summary's own figures, so that the two agree.
                pace = f"{totals.seconds:.1f} s, {totals.tokens_per_s:.0f} tok/s"
                progress.update(bar, advance=1, pace=pace)
            await subscriptions.close()
            await redis.aclose()
