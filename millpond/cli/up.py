"""``millpond up``: everything on one machine, until Ctrl-C."""

import asyncio
import re
import signal
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console

from millpond.cli.event_lines import EventLines
from millpond.cli.options import (
    DataFlag,
    DtypeFlag,
    EngineFlag,
    QueueFlag,
    RedisFlag,
    SetFlag,
    parse_assignments,
)
from millpond.local.stack import Stack, running_stack
from millpond.local.stack_events import Level, StackEvent
from millpond.local.worker_pool import WorkerPool
from millpond.queue.connection import without_password
from millpond.settings import Settings, is_loopback, load_settings
from millpond.tasks import end_tasks

# A first start downloads or converts a model.
READY_TIMEOUT_S = 1800.0
# The number of a card, or its UUID.
CARD = re.compile(r"[A-Za-z0-9-]{1,64}")


def up(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="A preset, a model folder, a GGUF file or a hub name. "
            "Repeat it to serve several, each by a worker of its own.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Workers for each model, which share the memory.")
    ] = 1,
    devices: Annotated[
        str | None,
        typer.Option(help="A worker for each model on each of these cards: 0,1,2."),
    ] = None,
    engine: EngineFlag = None,
    dtype: DtypeFlag = None,
    data: DataFlag = None,
    port: Annotated[int | None, typer.Option(help="The API's port.")] = None,
    host: Annotated[str | None, typer.Option(help="The API's address.")] = None,
    api_processes: Annotated[
        int | None, typer.Option(help="Processes that serve the API on one port.")
    ] = None,
    redis_url: RedisFlag = None,
    queue: QueueFlag = None,
    fsync: Annotated[
        str, typer.Option(help="appendfsync of the embedded server: everysec or always.")
    ] = "everysec",
    json_: Annotated[
        bool | None,
        typer.Option(
            "--json/--no-json",
            help="Events as JSON, one a line, or for people; by default JSON unless on a terminal.",
            show_default=False,
        ),
    ] = None,
    set_: SetFlag = None,
) -> None:
    """Start a server, a worker and the API, and keep them running."""
    if fsync not in ("everysec", "always"):
        raise typer.BadParameter("must be everysec or always", param_hint="--fsync")
    settings = load_settings(
        parse_assignments(set_),
        model=None if model is None else model[0],
        engine=engine,
        dtype=dtype,
        data_dir=data,
        port=port,
        host=host,
        api_processes=api_processes,
        redis_url=redis_url,
        queue=queue,
    )
    others = [] if model is None else model[1:]
    if others and settings.engine == "remote":
        raise typer.BadParameter("the remote engine serves one model", param_hint="--model")
    pool = WorkerPool(others, workers, _cards(devices, workers))
    for worker in pool.settings(settings).values():
        worker.preset()  # a wrong model is told before anything starts
    console = Console(highlight=False)
    say = EventLines(console, as_json=not console.is_terminal if json_ is None else json_)
    embedded = "redis_url" not in settings.model_fields_set
    asyncio.run(_up(settings, pool, say, embedded=embedded, fsync=fsync))


def _cards(devices: str | None, workers: int) -> list[str]:
    """Raises BadParameter."""
    if devices is None:
        return []
    cards = [card.strip() for card in devices.split(",")]
    if workers > 1:
        raise typer.BadParameter("names the workers already: one a card", param_hint="--devices")
    if not all(map(CARD.fullmatch, cards)) or len(set(cards)) < len(cards):
        raise typer.BadParameter("must be different cards: 0,1,2", param_hint="--devices")
    return cards


async def _up(
    settings: Settings, pool: WorkerPool, say: EventLines, *, embedded: bool, fsync: str
) -> None:
    stopped = asyncio.Event()
    _on_interrupt(stopped.set)
    models = ", ".join([settings.model_name, *pool.models])
    _tell(say, f"starting {models} with the {settings.engine} engine")
    async with running_stack(
        settings,
        embedded_server=embedded,
        api=True,
        say=say,
        append_fsync=fsync,
        pool=pool,
    ) as stack:
        ready = asyncio.create_task(stack.wait_ready(READY_TIMEOUT_S))
        waiting = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait({ready, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
                _welcome(stack, say)
                await waiting
        finally:
            await end_tasks(ready, waiting)
            _on_interrupt(stack.hurry)
        _tell(say, "stopping")
    _tell(say, "stopped")


def _on_interrupt(call: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, call)


def _welcome(stack: Stack, say: EventLines) -> None:
    settings = stack.settings
    redis = without_password(stack.redis_url)
    _tell(say, f"Redis at {redis}, queue {settings.queue!r}; logs in {settings.data_dir}")
    if settings.auth_required:
        made = f"millpond keys create --data {settings.data_dir}"
        _tell(say, f"the API asks for keys; make one with: {made}")
    elif not is_loopback(settings.host):
        _tell(say, f"anybody who reaches {settings.host} can use this API", "warning")
    _tell(say, f"API at {stack.api_url}, Ctrl-C stops everything", "good")


def _tell(say: EventLines, message: str, level: Level = "info") -> None:
    say(StackEvent("stack", message, level))
