"""``millpond keys``: make, list and revoke the API keys of a queue."""

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from millpond.access.api_keys import ApiKey, ApiKeys, KeyLimits, Scope
from millpond.cli.connecting import on_redis, run_with
from millpond.cli.options import DataFlag, QueueFlag, RedisFlag
from millpond.cli.tables import folding_table, utc_time
from millpond.messages import Priority
from millpond.queue.submission import DEFAULT_TENANT

app = typer.Typer(no_args_is_help=True, help="API keys: who may use the HTTP API.")

Limit = Annotated[int | None, typer.Option(min=1, show_default="no limit")]


@app.command()
def create(
    tenant: Annotated[str, typer.Option(help="Whose jobs it submits and reads.")] = DEFAULT_TENANT,
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="May be given several times.", show_default="submit and read"),
    ] = None,
    name: Annotated[str, typer.Option(help="For the list; say who has it.")] = "",
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    unfinished_jobs: Limit = None,
    open_streams: Annotated[
        int | None, typer.Option(min=1, show_default="the API's max_streams_per_key")
    ] = None,
    stored_bytes: Annotated[
        int | None, typer.Option(min=1, show_default="the queue's max_tenant_bytes")
    ] = None,
    priority: Annotated[
        list[Priority] | None,
        typer.Option(help="One that its jobs may have; may be repeated.", show_default="all"),
    ] = None,
    redis_url: RedisFlag = None,
    queue: QueueFlag = None,
    data: DataFlag = None,
) -> None:
    """Make a key and print it. It is shown this once; only a hash of it is stored."""
    limits = KeyLimits(
        requests_per_minute, tokens_per_minute, unfinished_jobs, open_streams, stored_bytes
    )

    async def call(keys: ApiKeys) -> None:
        scopes = scope or [Scope.SUBMIT, Scope.READ]
        key, token = await keys.create(
            tenant, scopes, name=name, limits=limits, priorities=priority
        )
        Console(stderr=True, highlight=False).print(
            f"Key {key.id} of tenant {tenant}: {', '.join(sorted(key.scopes))}. "
            "Keep it now, it is not shown again:"
        )
        print(token)

    run_with(on_redis(ApiKeys), call, redis_url, queue, data)


@app.command("list")
def list_keys(redis_url: RedisFlag = None, queue: QueueFlag = None, data: DataFlag = None) -> None:
    """Show all keys, without what opens them."""

    async def call(keys: ApiKeys) -> None:
        table = folding_table(
            *("id", "name", "tenant", "scopes", "limits", "created", "revoked"), whole=("id",)
        )
        for key in await keys.list():
            table.add_row(
                key.id,
                escape(key.name),
                key.tenant,
                " ".join(sorted(key.scopes)),
                _limits(key),
                utc_time(key.created_ms),
                "" if key.revoked_ms is None else utc_time(key.revoked_ms),
            )
        Console(highlight=False).print(table if table.rows else "No keys.")

    run_with(on_redis(ApiKeys), call, redis_url, queue, data)


@app.command()
def revoke(
    id: Annotated[str, typer.Argument(help="The key's id, as the list shows it.")],
    redis_url: RedisFlag = None,
    queue: QueueFlag = None,
    data: DataFlag = None,
) -> None:
    """Close a key for ever. The API forgets it within two seconds."""

    async def call(keys: ApiKeys) -> None:
        if not await keys.revoke(id):
            Console(stderr=True, highlight=False).print("There is no such key.")
            raise typer.Exit(1)
        print(id)

    run_with(on_redis(ApiKeys), call, redis_url, queue, data)


def _limits(key: ApiKey) -> str:
    shown = {
        "requests/min": key.limits.requests_per_minute,
        "tokens/min": key.limits.tokens_per_minute,
        "unfinished": key.limits.unfinished_jobs,
        "streams": key.limits.open_streams,
        "stored bytes": key.limits.stored_bytes,
    }
    told = [f"{value} {name}" for name, value in shown.items() if value is not None]
    if key.priorities is not None:
        told.append(f"{' '.join(sorted(key.priorities))} only")
    return ", ".join(told)
