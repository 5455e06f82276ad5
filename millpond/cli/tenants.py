"""``millpond tenants``: show who has jobs in a queue, and set by what weight they share the workers."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from millpond.cli.options import DataFlag, QueueFlag, RedisFlag, client_settings
from millpond.connection import connect
from millpond.keys import Keys
from millpond.tenants import Tenants

app = typer.Typer(no_args_is_help=True, help="Tenants: who shares the workers, by what weight.")


@app.command()
def weight(
    tenant: Annotated[str, typer.Argument(help="As its API keys name it.")],
    weight: Annotated[float, typer.Argument(help="2 is twice the tokens of 1, which all have.")],
    redis_url: RedisFlag = None,
    queue: QueueFlag = None,
    data: DataFlag = None,
) -> None:
    """Set a tenant's weight; it counts at once."""

    async def call(tenants: Tenants) -> None:
        await tenants.set_weight(tenant, weight)

    _with_tenants(call, redis_url, queue, data)


@app.command("list")
def list_tenants(
    redis_url: RedisFlag = None, queue: QueueFlag = None, data: DataFlag = None
) -> None:
    """Show those who have unfinished jobs or a weight of their own."""

    async def call(tenants: Tenants) -> None:
        table = Table("tenant", "weight", "unfinished jobs")
        for tenant in await tenants.list():
            table.add_row(tenant.name, f"{tenant.weight:g}", str(tenant.unfinished_jobs))
        Console(highlight=False).print(table if table.rows else "No tenants.")

    _with_tenants(call, redis_url, queue, data)


def _with_tenants(
    call: Callable[[Tenants], Coroutine[Any, Any, None]],
    redis_url: str | None,
    queue: str | None,
    data: Path | None,
) -> None:
    settings = client_settings(redis_url, queue, data)

    async def run() -> None:
        redis = connect(settings.redis_url)
        try:
            await call(Tenants(redis, Keys(settings.queue)))
        finally:
            await redis.aclose()

    asyncio.run(run())
