"""The commands of a client: submit, result, watch, cancel, queue."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from millpond.cli.options import DataFlag, QueueFlag, RedisFlag, client_settings
from millpond.client import Client
from millpond.messages import EventType, JobRequest, JobResult, JobStatus, Priority

JobId = Annotated[str, typer.Argument(help="The id that submit printed.", show_default=False)]


def submit(
    prompt: Annotated[str, typer.Argument(help="The question, or - to read it from stdin.")],
    max_tokens: Annotated[int | None, typer.Option()] = None,
    n: Annotated[int, typer.Option("--n", help="How many texts to write.")] = 1,
    temperature: Annotated[float | None, typer.Option()] = None,
    top_p: Annotated[float | None, typer.Option()] = None,
    top_k: Annotated[int | None, typer.Option()] = None,
    min_p: Annotated[float | None, typer.Option()] = None,
    repetition_penalty: Annotated[float | None, typer.Option()] = None,
    presence_penalty: Annotated[float, typer.Option()] = 0.0,
    frequency_penalty: Annotated[float, typer.Option()] = 0.0,
    seed: Annotated[int | None, typer.Option()] = None,
    stop: Annotated[list[str] | None, typer.Option(help="May be given several times.")] = None,
    loop_repeats: Annotated[
        int | None, typer.Option(help="End it when it repeats itself so often.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="One of the model's adapters.")] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it stands.")] = False,
    priority: Annotated[Priority, typer.Option()] = Priority.NORMAL,
    deadline_s: Annotated[float | None, typer.Option()] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait, and print the result.")] = False,
    redis_url: RedisFlag = None,
    queue: QueueFlag = None,
    data: DataFlag = None,
) -> None:
    """Queue one prompt and print its job's id."""
    request = JobRequest(
        prompt=sys.stdin.read() if prompt == "-" else prompt,
        max_tokens=max_tokens,
        n=n,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        stop=stop or [],
        loop_repeats=loop_repeats,
        adapter=adapter,
        system=system,
        raw=raw,
        priority=priority,
        deadline_s=deadline_s,
    )

    async def call(client: Client) -> None:
        id = await client.submit(request)
        if not wait:
            print(id)
            return
        _show(await client.result(id))

    _with_client(call, redis_url, queue, data)


def result(
    id: JobId,
    wait_s: Annotated[float, typer.Option("--wait", help="Seconds to wait for its end.")] = 0.0,
    redis_url: RedisFlag = None,
    queue: QueueFlag = None,
    data: DataFlag = None,
) -> None:
    """Print a job's result as JSON; exit status 1 unless it succeeded."""

    async def call(client: Client) -> None:
        if wait_s > 0:
            _show(await client.result(id, wait_s))
            return
        view = await client.get(id)
        if view.result is None:
            line = {"id": id, "status": view.status, "position": view.position}
            print(orjson.dumps(line).decode())
            raise typer.Exit(1)
        _show(view.result)

    _with_client(call, redis_url, queue, data)


def watch(
    id: JobId, redis_url: RedisFlag = None, queue: QueueFlag = None, data: DataFlag = None
) -> None:
    """Print a job's text as it is written, the first one of several."""

    async def call(client: Client) -> None:
        async for event in client.watch(id):
            if event.type is EventType.DELTA:
                print("" if event.index else event.text, end="", flush=True)
            elif event.type is EventType.RESET:
                print(f"\n-- starting over ({event.reason}) --", flush=True)
            elif event.type is EventType.FINISHED and event.result is not None:
                print(flush=True)
                if event.result.status is not JobStatus.SUCCEEDED:
                    _show(event.result)

    _with_client(call, redis_url, queue, data)


def cancel(
    id: JobId, redis_url: RedisFlag = None, queue: QueueFlag = None, data: DataFlag = None
) -> None:
    """Cancel a job; harmless when it has ended. Prints its status."""

    async def call(client: Client) -> None:
        print(await client.cancel(id))

    _with_client(call, redis_url, queue, data)


def queue(redis_url: RedisFlag = None, name: QueueFlag = None, data: DataFlag = None) -> None:
    """Show what is queued, what has been done and who works."""

    async def call(client: Client) -> None:
        state = await client.queue_state()
        console = Console(highlight=False)
        counts = Table("queued", *Priority, "running", "retrying", "dead", *state.done)
        counts.add_row(
            str(state.depth),
            *(str(state.queued[p]) for p in Priority),
            str(state.running),
            str(state.delayed),
            str(state.dead),
            *(str(n) for n in state.done.values()),
        )
        console.print(counts)
        workers = Table(
            "worker", "state", "model", "backend", "rows", "jobs/s", "tok/s", "slots taken"
        )
        for worker in state.workers:
            own = worker.state
            workers.add_row(
                worker.id,
                own.state if worker.alive else f"silent {worker.beat_age_ms} ms",
                own.model,
                f"{own.backend or ''} {own.dtype or ''}",
                f"{own.rows}/{own.slots or '?'}",
                f"{own.jobs_per_s:.2f}",
                f"{own.tokens_per_s:.0f}",
                f"{own.slot_share:.1%}",
            )
        console.print(workers if state.workers else "No worker has signed on.")

    _with_client(call, redis_url, name, data)


def _with_client(
    call: Callable[[Client], Coroutine[Any, Any, None]],
    redis_url: str | None,
    queue: str | None,
    data: Any,
) -> None:
    settings = client_settings(redis_url, queue, data)

    async def run() -> None:
        options = settings.queue_options()
        async with Client(settings.redis_url, settings.queue, options=options) as client:
            await call(client)

    asyncio.run(run())


def _show(result: JobResult) -> None:
    """One JSON document on standard output; a failed job is exit status 1."""
    print(orjson.dumps(orjson.loads(result.to_json()), option=orjson.OPT_INDENT_2).decode())
    if result.status is not JobStatus.SUCCEEDED:
        raise typer.Exit(1)
