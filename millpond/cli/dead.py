"""``millpond dead``: jobs that ran out of attempts. List them, look at one, have them run again."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from millpond.cli.options import DataFlag, QueueFlag, RedisFlag, client_settings
from millpond.client import Client

app = typer.Typer(no_args_is_help=True, help="Dead letters: jobs that ran out of attempts.")

TenantFlag = Annotated[str | None, typer.Option("--tenant", help="Only those of this tenant.")]
LetterId = Annotated[str, typer.Argument(help="Its id, as the list shows it.", show_default=False)]


@app.command("list")
def list_dead(
    tenant: TenantFlag = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 100,
    redis_url: RedisFlag = None,
    queue: QueueFlag = None,
    data: DataFlag = None,
) -> None:
    """Show them, the newest first."""

    async def call(client: Client) -> None:
        table = Table("tenant", "attempts", "deaths", "error")
        table.add_column("id", no_wrap=True, overflow="ignore")
        cursor = None
        while table.row_count < limit:
            page = await client.dead(tenant=tenant, cursor=cursor)
            for job in page.jobs[: limit - table.row_count]:
                error = "" if job.error is None else job.error.code
                table.add_row(job.tenant, str(job.attempts), str(job.deaths), error, job.id)
            if (cursor := page.cursor) is None:
                break
        Console(highlight=False).print(table if table.row_count else "No dead letters.")

    _with_client(call, redis_url, queue, data)


@app.command()
def show(
    id: LetterId, redis_url: RedisFlag = None, queue: QueueFlag = None, data: DataFlag = None
) -> None:
    """Print what was asked and what became of it, as JSON."""

    async def call(client: Client) -> None:
        job, body = await client.dead_letter(id)
        shown = {
            "id": job.id,
            "tenant": job.tenant,
            "attempts": job.attempts,
            "deaths": job.deaths,
            "finished_ms": job.finished_ms,
            "error": None if job.error is None else job.error.model_dump(),
            "request": body.model_dump(mode="json", exclude_defaults=True),
        }
        print(orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode())

    _with_client(call, redis_url, queue, data)


@app.command()
def retry(
    ids: Annotated[list[str], typer.Argument(help="Their ids.", show_default=False)],
    redis_url: RedisFlag = None,
    queue: QueueFlag = None,
    data: DataFlag = None,
) -> None:
    """Run them again, as new jobs of the same bodies, and print the new ids."""

    async def call(client: Client) -> None:
        for id in ids:
            print(await client.retry_dead(id))

    _with_client(call, redis_url, queue, data)


def _with_client(
    call: Callable[[Client], Coroutine[Any, Any, None]],
    redis_url: str | None,
    queue: str | None,
    data: Path | None,
) -> None:
    settings = client_settings(redis_url, queue, data)

    async def run() -> None:
        options = settings.queue_options()
        async with Client(settings.redis_url, settings.queue, options=options) as client:
            await call(client)

    asyncio.run(run())
