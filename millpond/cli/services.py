"""``millpond worker``, ``api`` and ``background``: one service alone, as a container wants it."""

import os
from typing import Annotated

import typer

from millpond.cli.options import (
    DtypeFlag,
    EngineFlag,
    ModelFlag,
    QueueFlag,
    RedisFlag,
    SetFlag,
    parse_assignments,
)
from millpond.local.services import Service, service_argv, service_environment
from millpond.settings import Settings, load_settings


def worker(
    model: ModelFlag = None,
    engine: EngineFlag = None,
    dtype: DtypeFlag = None,
    redis_url: RedisFlag = None,
    queue: QueueFlag = None,
    set_: SetFlag = None,
) -> None:
    """Run one worker on a server that runs already, until SIGTERM."""
    settings = load_settings(
        parse_assignments(set_),
        model=model,
        engine=engine,
        dtype=dtype,
        redis_url=redis_url,
        queue=queue,
    )
    _become("worker", settings)


def api(
    port: Annotated[int | None, typer.Option(help="The API's port.")] = None,
    host: Annotated[str | None, typer.Option(help="The API's address.")] = None,
    api_processes: Annotated[
        int | None, typer.Option(help="Processes that serve the API on one port.")
    ] = None,
    model: ModelFlag = None,
    engine: EngineFlag = None,
    redis_url: RedisFlag = None,
    queue: QueueFlag = None,
    set_: SetFlag = None,
) -> None:
    """Run the HTTP API on a server that runs already, until SIGTERM."""
    settings = load_settings(
        parse_assignments(set_),
        port=port,
        host=host,
        api_processes=api_processes,
        model=model,
        engine=engine,
        redis_url=redis_url,
        queue=queue,
    )
    _become("api", settings)


def background(redis_url: RedisFlag = None, queue: QueueFlag = None, set_: SetFlag = None) -> None:
    """Run the background worker of batches on a server that runs already, until SIGTERM."""
    _become("background", load_settings(parse_assignments(set_), redis_url=redis_url, queue=queue))


def _become(name: Service, settings: Settings) -> None:
    """Replace this process by the service's, with the same settings."""
    settings.preset()  # a wrong model is told before anything is loaded
    argv = service_argv(name)
    os.execve(argv[0], argv, os.environ | settings.environment() | service_environment())  # noqa: S606
