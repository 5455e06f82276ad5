"""``millpond dead``: jobs that ran out of attempts. List them, look at one, have them run again."""

from typing import Annotated

import orjson
import typer
from rich.console import Console

from millpond.cli.connecting import open_client, run_with
from millpond.cli.options import DataFlag, QueueFlag, RedisFlag
from millpond.cli.tables import folding_table
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
        table = folding_table("id", "tenant", "attempts", "deaths", "error", whole={"id"})
        cursor = None
        while table.row_count < limit:
            page = await client.dead(tenant=tenant, cursor=cursor)
            for job in page.jobs[: limit - table.row_count]:
                error = "" if job.error is None else job.error.code
                table.add_row(job.id, job.tenant, str(job.attempts), str(job.deaths), error)
            if (cursor := page.cursor) is None:
                break
        Console(highlight=False).print(table if table.row_count else "No dead letters.")

    run_with(open_client, call, redis_url, queue, data)


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

    run_with(open_client, call, redis_url, queue, data)


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

    run_with(open_client, call, redis_url, queue, data)
