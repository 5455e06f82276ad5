"""``millpond queue``: what waits, what ran, who works."""

import asyncio
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from millpond.cli.connecting import open_client, run_with
from millpond.cli.options import DataFlag, QueueFlag, RedisFlag
from millpond.cli.tables import folding_table
from millpond.client import Client
from millpond.errors import QueueUnavailableError
from millpond.messages.worker_state import RegisteredWorker
from millpond.queue.results import QueueState

EVERY_S = 1.0


def queue(
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it, until Ctrl-C.")] = False,
    redis_url: RedisFlag = None,
    name: QueueFlag = None,
    data: DataFlag = None,
) -> None:
    """Show what is queued, what has been done and who works."""
    console = Console(highlight=False)

    async def call(client: Client) -> None:
        if not watch:
            console.print(render(await client.queue_state()))
            return
        with Live(console=console, auto_refresh=False) as live:
            while True:
                try:
                    shown = render(await client.queue_state())
                except QueueUnavailableError as error:
                    shown = Text(str(error), style="red")
                live.update(shown, refresh=True)
                await asyncio.sleep(EVERY_S)

    run_with(open_client, call, redis_url, name, data)


def render(state: QueueState) -> RenderableType:
    """Counts in lines, workers in a table."""
    queued = ", ".join(f"{priority} {number}" for priority, number in state.queued.items())
    ended = ", ".join(f"{status} {number}" for status, number in state.done.items())
    counts = Text(
        f"queued   {state.depth} ({queued})\n"
        f"running  {state.running}\n"
        f"retrying {state.delayed}, dead {state.dead}\n"
        f"ended    {ended}"
    )
    if not state.workers:
        return Group(counts, Text("\nNo worker has signed on."))
    table = folding_table(
        *("worker", "state", "model", "rows", "jobs/s", "tok/s", "slots taken"), whole=("worker",)
    )
    for worker in state.workers:
        table.add_row(*_cells(worker))
    return Group(counts, table)


def _cells(worker: RegisteredWorker) -> list[str]:
    own = worker.state
    return [
        worker.id,
        own.state if worker.alive else f"silent for {worker.beat_age_ms / 1000:.0f} s",
        f"{own.model}, {own.made_with}" if own.made_with else own.model,
        f"{own.rows}/{own.slots or '?'}",
        f"{own.jobs_per_s:.2f}",
        # Rows count when they end; before the first has, there is no figure.
        "..." if own.rows and not own.tokens_per_s else f"{own.tokens_per_s:.0f}",
        f"{own.slot_share:.1%}",
    ]
