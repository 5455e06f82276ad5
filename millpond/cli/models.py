"""``millpond models``: which models have a queue on the server, and how to take one from the list."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console

from millpond.cli.connecting import run_with
from millpond.cli.options import DataFlag, RedisFlag
from millpond.cli.tables import folding_table
from millpond.errors import MillpondError
from millpond.queue.connection import Connections
from millpond.queue.directory import AnnouncedQueue, QueueDirectory
from millpond.queue.results import QueueState, Results
from millpond.queue.subscriptions import Subscriptions
from millpond.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Models: those that have a queue on the server.")


@dataclass(frozen=True, slots=True)
class _Served:
    queue: str
    about: AnnouncedQueue
    state: QueueState

    @property
    def workers(self) -> int:
        return sum(worker.alive for worker in self.state.workers)

    @property
    def unfinished(self) -> int:
        return self.state.depth + self.state.running + self.state.delayed


@app.command("list")
def list_models(redis_url: RedisFlag = None, data: DataFlag = None) -> None:
    """Show each model, its queue, and who works on it."""

    async def call(connections: Connections) -> None:
        table = folding_table("model", "queue", "engine", "workers", "unfinished jobs", whole=())
        for one in await _all_served(connections):
            table.add_row(
                one.about.model, one.queue, one.about.engine, str(one.workers), str(one.unfinished)
            )
        Console(highlight=False).print(table if table.rows else "No worker has been here yet.")

    run_with(_connected, call, redis_url, None, data)


@app.command()
def forget(
    model: Annotated[str, typer.Argument(help="As `millpond models list` names it.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also if it has unfinished jobs; they stay in Redis.")
    ] = False,
    redis_url: RedisFlag = None,
    data: DataFlag = None,
) -> None:
    """Take a model from the list, until a worker for it starts again; the API refuses it from then on."""

    async def call(connections: Connections) -> None:
        found = [one for one in await _all_served(connections) if one.about.model == model]
        if not found:
            raise ModelNotForgottenError(f"{model}: no queue serves it; see `millpond models list`")
        for one in found:
            if one.workers:
                message = f"{model}: has workers: {one.workers}; stop them first"
                raise ModelNotForgottenError(message)
            if one.unfinished and not force:
                message = f"{model}: unfinished jobs: {one.unfinished}; --force leaves them there"
                raise ModelNotForgottenError(message)
        for one in found:
            await QueueDirectory(connections.to_directory()).forget(one.queue)

    run_with(_connected, call, redis_url, None, data)


class ModelNotForgottenError(MillpondError):
    code = "model_not_forgotten"


@contextlib.asynccontextmanager
async def _connected(settings: Settings) -> AsyncIterator[Connections]:
    connections = Connections(settings.redis_url)
    try:
        yield connections
    finally:
        await connections.aclose()


async def _all_served(connections: Connections) -> list[_Served]:
    announced = await QueueDirectory(connections.to_directory()).all()
    queues = {queue: connections.to_queue(queue) for queue in announced}
    states = await asyncio.gather(
        *(
            Results(redis, queue, Subscriptions(redis)).queue_state()
            for queue, redis in queues.items()
        )
    )
    return [
        _Served(queue, about, state)
        for (queue, about), state in zip(announced.items(), states, strict=True)
    ]
