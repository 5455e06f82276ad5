"""``millpond webhooks``: who is told by HTTP when a tenant's jobs end."""

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from millpond.cli.connecting import on_redis, run_with
from millpond.cli.options import DataFlag, QueueFlag, RedisFlag
from millpond.cli.tables import folding_table, utc_time
from millpond.queue.submission import DEFAULT_TENANT
from millpond.settings import Settings
from millpond.webhooks.endpoints import Endpoint, Endpoints, check_webhook_url
from millpond.webhooks.events import WebhookEvent
from millpond.webhooks.guard import Guard, SystemResolver
from millpond.webhooks.senders import check_sent

app = typer.Typer(no_args_is_help=True, help="Webhooks: who is told when jobs end.")

TenantFlag = Annotated[str, typer.Option(help="Whose jobs and batches.")]


@app.command()
def add(
    url: Annotated[str, typer.Argument(help="Where each event is posted.", show_default=False)],
    tenant: TenantFlag = DEFAULT_TENANT,
    event: Annotated[
        list[WebhookEvent] | None,
        typer.Option(help="May be given several times.", show_default="all"),
    ] = None,
    redis_url: RedisFlag = None,
    queue: QueueFlag = None,
    data: DataFlag = None,
) -> None:
    """Register an endpoint and print the secret by which it can check signatures."""

    async def call(opened: tuple[Endpoints, Guard]) -> None:
        endpoints, guard = opened
        check_webhook_url(url)
        with contextlib.suppress(OSError):  # a name that means nothing now may do so tomorrow
            await guard.check(url)
        endpoint, secret = await endpoints.add(tenant, url, event or ())
        Console(stderr=True, highlight=False).print(
            f"Endpoint {endpoint.id} of tenant {tenant}. Its secret, which is not shown again:"
        )
        print(secret)

    run_with(_with_guard, call, redis_url, queue, data)


@app.command("list")
def list_endpoints(
    redis_url: RedisFlag = None, queue: QueueFlag = None, data: DataFlag = None
) -> None:
    """Show all endpoints, and how they fare."""

    async def call(endpoints: Endpoints) -> None:
        table = folding_table("id", "tenant", "url", "events", "state", whole=("id",))
        for endpoint in await endpoints.list():
            table.add_row(
                endpoint.id,
                endpoint.tenant,
                escape(endpoint.url),
                " ".join(endpoint.events) or "all",
                escape(_state(endpoint)),
            )
        Console(highlight=False).print(table if table.rows else "No endpoints.")

    run_with(on_redis(Endpoints), call, redis_url, queue, data)


@app.command()
def remove(
    id: Annotated[str, typer.Argument(help="The endpoint's id, as the list shows it.")],
    redis_url: RedisFlag = None,
    queue: QueueFlag = None,
    data: DataFlag = None,
) -> None:
    """Forget an endpoint; what is still to be sent to it is dropped."""

    async def call(endpoints: Endpoints) -> None:
        if not await endpoints.remove(id):
            Console(stderr=True, highlight=False).print("There is no such endpoint.")
            raise typer.Exit(1)
        print(id)

    run_with(on_redis(Endpoints), call, redis_url, queue, data)


@app.command()
def secret(
    tenant: TenantFlag = DEFAULT_TENANT,
    redis_url: RedisFlag = None,
    queue: QueueFlag = None,
    data: DataFlag = None,
) -> None:
    """Print the secret that signs what the webhook_url of a job or a batch gets."""

    async def call(endpoints: Endpoints) -> None:
        print(await endpoints.secret(tenant))

    run_with(on_redis(Endpoints), call, redis_url, queue, data)


@contextlib.asynccontextmanager
async def _with_guard(settings: Settings) -> AsyncIterator[tuple[Endpoints, Guard]]:
    check_sent(settings.redis_url, "url")
    resolver = SystemResolver()
    try:
        async with on_redis(Endpoints)(settings) as endpoints:
            yield endpoints, Guard(resolver, settings.webhook_networks)
    finally:
        resolver.close()


def _state(endpoint: Endpoint) -> str:
    if endpoint.disabled_ms is not None:
        return f"disabled {utc_time(endpoint.disabled_ms)}: it answered 410"
    last_ms, failed_ms = endpoint.delivered_ms or 0, endpoint.failed_ms or 0
    if failed_ms > last_ms:
        return f"failed {utc_time(failed_ms)}: {endpoint.failure}"
    return f"delivered {utc_time(last_ms)}" if last_ms else "nothing sent yet"
