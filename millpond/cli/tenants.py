"""``millpond tenants``: show who has jobs in a queue, and set by what weight they share the workers."""

from typing import Annotated

import typer
from rich.console import Console

from millpond.cli.connecting import on_redis, run_with
from millpond.cli.options import DataFlag, QueueFlag, RedisFlag
from millpond.cli.tables import folding_table
from millpond.queue.tenants import Tenants

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

    run_with(on_redis(Tenants), call, redis_url, queue, data)


@app.command("list")
def list_tenants(
    redis_url: RedisFlag = None, queue: QueueFlag = None, data: DataFlag = None
) -> None:
    """Show those who have unfinished jobs or a weight of their own."""

    async def call(tenants: Tenants) -> None:
        table = folding_table("tenant", "weight", "unfinished jobs", whole=("tenant",))
        for tenant in await tenants.list():
            table.add_row(tenant.name, f"{tenant.weight:g}", str(tenant.unfinished_jobs))
        Console(highlight=False).print(table if table.rows else "No tenants.")

    run_with(on_redis(Tenants), call, redis_url, queue, data)
