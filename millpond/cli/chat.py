"""``millpond chat``: talk to the served model, a turn at a time."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from millpond.cli.connecting import open_client, run_with
from millpond.cli.following import Follower
from millpond.cli.options import DataFlag, QueueFlag, RedisFlag
from millpond.client import Client
from millpond.errors import MillpondError
from millpond.messages import JobRequest, JobResult, JobStatus, Message, Priority


def chat(
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Of each answer.")] = None,
    temperature: Annotated[float | None, typer.Option()] = None,
    adapter: Annotated[str | None, typer.Option(help="One of the model's adapters.")] = None,
    redis_url: RedisFlag = None,
    queue: QueueFlag = None,
    data: DataFlag = None,
) -> None:
    """Talk to the model. Ctrl-C stops an answer, Ctrl-D ends; /new forgets what was said."""
    console = Console(stderr=True, highlight=False)
    opening = [] if system is None else [Message(role="system", content=system)]
    said = list(opening)
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line == "/new":
            said = list(opening)
            continue
        if not line:
            continue
        asked = [*said, Message(role="user", content=line)]
        result = None
        try:
            request = JobRequest(
                messages=asked,
                max_tokens=max_tokens,
                temperature=temperature,
                adapter=adapter,
                priority=Priority.INTERACTIVE,
            )
            result = _answer(request, redis_url, queue, data)
        except KeyboardInterrupt:
            console.print("\n[stopped]", markup=False, style="dim")
        except MillpondError as error:
            console.print(str(error), markup=False, style="red")
        if result is not None and result.status is JobStatus.SUCCEEDED:
            said = [*asked, Message(role="assistant", content=result.text)]


def _answer(
    request: JobRequest, redis_url: str | None, queue: str | None, data: Path | None
) -> JobResult:
    """Print the answer as it comes. An interrupt cancels its job."""

    async def call(client: Client) -> JobResult:
        id = await client.submit(request)
        try:
            return await Follower(client).follow(id)
        except asyncio.CancelledError:
            await client.cancel(id)
            raise

    return run_with(open_client, call, redis_url, queue, data)
