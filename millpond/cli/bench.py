"""``millpond bench``: what a card can do, as a report."""

import asyncio
import datetime
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from millpond.bench.comparing import compare
from millpond.bench.driver import Bounds
from millpond.bench.frontier import Frontier
from millpond.bench.lengths import parse_lengths
from millpond.bench.machine import this_machine
from millpond.bench.records import Record, Setup, Tried
from millpond.bench.report.files import read_record, write_report
from millpond.bench.run import BenchRun
from millpond.bench.workloads import Asking, MadeUp, Wording, Workload
from millpond.cli.bench_flags import (
    API_KEY_VARIABLE,
    DEFAULT_CONCURRENCY,
    check_route,
    check_seconds,
    frontier_place,
    own_places,
    parse_counts,
    parse_limits,
    parse_loads,
    read_workload,
    servers,
)
from millpond.cli.bench_progress import BenchProgress
from millpond.cli.options import (
    DataFlag,
    DtypeFlag,
    EngineFlag,
    ModelFlag,
    SetFlag,
    parse_assignments,
)
from millpond.errors import InvalidRequestError


def bench(
    url: Annotated[
        list[str] | None,
        typer.Option(
            "--url",
            metavar="[NAME=]URL",
            help="Measure this OpenAI-compatible server instead, such as http://host:8000/v1. "
            f"Repeat it to compare servers. Its key is taken from {API_KEY_VARIABLE}.",
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            metavar="NAME=VALUE,VALUE",
            help="A setting to sweep, such as slots=1,16,64 or window=at-once,hybrid. Repeat it for "
            "combinations. Each has a stack of its own.",
        ),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            help="Closed loop: so many clients, one after the other. [default: 1,2,4,8,16,32]"
        ),
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Open loop: so many requests a second, such as 0.5,1,2.")
    ] = None,
    burst: Annotated[int, typer.Option(help="Open loop: requests that come together.")] = 1,
    frontier: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTHS",
            help="Instead of a load: which batches of rows of 512,1024 tokens, prompt and answer "
            "together, run side by side? Rising until one does not.",
        ),
    ] = None,
    batches: Annotated[str, typer.Option(help="Of the frontier.")] = "1,2,4,8,16,32,64,128",
    input_tokens: Annotated[
        str, typer.Option(help="Of each prompt: 128, or lognormal:MEDIAN:SIGMA:MAX.")
    ] = "128",
    output_tokens: Annotated[str, typer.Option(help="Of each answer, likewise.")] = "64",
    workload: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Requests of your own instead: OpenAI batch lines or bodies, one a line.",
        ),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Most requests of each load.")] = 1000,
    seconds: Annotated[
        float, typer.Option(help="Each load sends no more requests after this.")
    ] = 30.0,
    warmup: Annotated[
        int, typer.Option(min=0, max=1000, help="Requests before the first load, not measured.")
    ] = 4,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Everything so often, in turn.")] = 1,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            "--limit",
            metavar="NAME=MS",
            help="Goodput counts requests within all limits: of ttft, tpot, e2e or wait.",
        ),
    ] = None,
    route: Annotated[str, typer.Option(help="chat or completions.")] = "chat",
    stream: Annotated[
        bool, typer.Option(help="Streamed answers; without, there is no time to the first token.")
    ] = True,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.0,
    ignore_eos: Annotated[
        bool, typer.Option(help="Full-length answers, on servers that know ignore_eos.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of the made-up prompts and lengths.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder of the report. [default: bench-TIME]"),
    ] = None,
    compare_with: Annotated[
        Path | None,
        typer.Option("--compare", dir_okay=False, help="An earlier report.json: what moved?"),
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option("--from", dir_okay=False, help="Run nothing: report on this report.json."),
    ] = None,
    model: ModelFlag = None,
    engine: EngineFlag = None,
    dtype: DtypeFlag = None,
    data: DataFlag = None,
    set_: SetFlag = None,
) -> None:
    """Measure what a server takes, and write a report.

    Measures the servers of --url, else the stack that runs in the data folder if it serves the same
    model in the same way, else a stack of its own. Exit status 1 if any request failed.
    """
    earlier = None if compare_with is None else read_record("--compare", compare_with)
    folder = out or Path(f"bench-{datetime.datetime.now().astimezone():%Y%m%d-%H%M%S}")
    if from_ is not None:
        _report(read_record("--from", from_), earlier, folder)
        return
    if url and vary:
        raise InvalidRequestError("--vary", "the settings of a running server are its own")
    bounds = Bounds(requests, check_seconds(seconds))
    asking = Asking(check_route(route), temperature, ignore_eos)
    inputs = parse_lengths("--input-tokens", input_tokens)
    outputs = parse_lengths("--output-tokens", output_tokens)
    questions = None if workload is None else read_workload("--workload", workload)
    setup = Setup(
        command=shlex.join(["millpond", *sys.argv[1:]]),
        route=route,
        stream=stream,
        inputs=f"{inputs}" if workload is None else workload.name,
        outputs=f"{outputs}" if workload is None else workload.name,
        temperature=temperature,
        ignore_eos=ignore_eos,
        seed=seed,
        requests=requests,
        seconds=seconds,
        warmup=warmup,
        rounds=rounds,
        limits_ms=parse_limits(limit or []),
    )
    loads = parse_loads(concurrency, rate, burst)
    shown = BenchProgress(Console(stderr=True, highlight=False), bounds, rounds)
    assigned = parse_assignments(set_)
    flags = {"model": model, "engine": engine, "dtype": dtype, "data_dir": data}
    tried = None
    if frontier is not None:
        if url or vary:
            raise InvalidRequestError("--frontier", "tries one setting, with stacks of its own")
        tried = Frontier(
            frontier_place(assigned, flags, shown.say),
            asking,
            parse_counts("--frontier", frontier, least=2),
            parse_counts("--batches", batches, least=1),
            shown,
        )
    elif not loads:
        loads = parse_loads(DEFAULT_CONCURRENCY, None, 1)
    if url:
        places = servers(url, model, stream=stream)
    else:
        places = own_places(vary or [], assigned, flags, shown.say, stream=stream)

    def words_of(wording: Wording) -> Workload:
        return questions or MadeUp(inputs, outputs, asking, wording, seed)

    run = BenchRun(places, loads, asking, words_of, bounds, warmup, rounds, shown)
    record = _measure(run, tried, setup, shown)
    _report(record, earlier, folder)
    if not record.complete or any(r.error for one in record.runs for r in one.requests):
        raise typer.Exit(1)


def _measure(
    run: BenchRun, frontier: Frontier | None, setup: Setup, shown: BenchProgress
) -> Record:
    """What there is when it ends, or when somebody presses Ctrl-C."""
    machine, began, started_s = (
        this_machine(),
        datetime.datetime.now(datetime.UTC),
        time.monotonic(),
    )
    tried: list[Tried] = []

    async def measure() -> None:
        if run.loads:
            await run.run()
        if frontier is not None:
            async for one in frontier.run():
                tried.append(one)
                shown.tried(one)

    complete = True
    try:
        with shown.shown():
            asyncio.run(measure())
    except KeyboardInterrupt:
        if not run.runs and not tried:
            raise
        complete = False
    return Record(
        began_at=began.isoformat(timespec="seconds"),
        seconds=time.monotonic() - started_s,
        complete=complete,
        machine=machine,
        setup=setup,
        targets=list(run.targets.values()),
        runs=run.runs,
        frontier=tried,
    )


def _report(record: Record, earlier: Record | None, folder: Path) -> None:
    moved = [] if earlier is None else compare(earlier, record)
    for path in write_report(record, moved, folder):
        print(path)
