"""``millpond up``: everything on one machine, until Ctrl-C."""

import asyncio
import signal
from typing import Annotated

import typer
from rich.console import Console

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
from millpond.connection import without_password
from millpond.settings import Settings, is_loopback, load_settings
from millpond.stack import running_stack

# A first start downloads or converts a model.
READY_TIMEOUT_S = 1800.0


def up(
    model: ModelFlag = None,
    engine: EngineFlag = None,
    dtype: DtypeFlag = None,
    data: DataFlag = None,
    port: Annotated[int | None, typer.Option(help="The API's port.")] = None,
    host: Annotated[str | None, typer.Option(help="The API's address.")] = None,
    redis_url: RedisFlag = None,
    queue: QueueFlag = None,
    fsync: Annotated[
        str, typer.Option(help="appendfsync of the embedded server: everysec or always.")
    ] = "everysec",
    set_: SetFlag = None,
) -> None:
    """Start a server, a worker and the API, and keep them running."""
    if fsync not in ("everysec", "always"):
        raise typer.BadParameter("must be everysec or always", param_hint="--fsync")
    settings = load_settings(
        parse_assignments(set_),
        model=model,
        engine=engine,
        dtype=dtype,
        data_dir=data,
        port=port,
        host=host,
        redis_url=redis_url,
        queue=queue,
    )
    settings.preset()  # a wrong model is told before anything starts
    asyncio.run(_up(settings, embedded="redis_url" not in settings.model_fields_set, fsync=fsync))


async def _up(settings: Settings, *, embedded: bool, fsync: str) -> None:
    console = Console(highlight=False)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    console.print(f"Starting {settings.model_name} with the {settings.engine} engine ...")
    async with running_stack(
        settings, embedded_server=embedded, api=True, say=console.print, append_fsync=fsync
    ) as stack:
        ready = asyncio.create_task(stack.wait_ready(READY_TIMEOUT_S))
        waiting = asyncio.create_task(stopped.wait())
        await asyncio.wait({ready, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            worker = ready.result()
            console.print(
                f"[bold]{stack.api_url}[/bold]  {worker.model}, {worker.dtype} on "
                f"{worker.device}, {worker.slots} slots\n"
                f"Redis: {without_password(stack.redis_url)}, queue {settings.queue!r}. "
                f"Logs: {settings.data_dir}. Ctrl-C stops everything."
            )
            if settings.auth_required:
                console.print(
                    "The API asks for keys; make one with: millpond keys create "
                    f"--data {settings.data_dir}"
                )
            elif not is_loopback(settings.host):
                console.print(f"[red]Anybody who reaches {settings.host} can use this API.[/red]")
            await waiting
        ready.cancel()
        console.print("Stopping ...")
    console.print("Stopped.")
