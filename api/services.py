"""Everything that the routes use, built once for each application and closed with it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, FastAPI, Request
from redis.asyncio import Redis

from api.access.gate import Gate
from api.access.open_answers import OpenAnswers
from api.answers.readiness import ReadinessCheck
from api.background_jobs import BackgroundJobs
from api.directory import Directory, ServedQueue
from api.metrics import Metrics
from api.page.files import PageFiles
from api.requests.webhooks import WebhookCheck
from api.watch import watch_queue
from millpond.access.api_keys import ApiKeys
from millpond.access.rate_limits import RateLimiter
from millpond.batches.batches import Batches
from millpond.batches.files import Files
from millpond.batches.storage import Storage
from millpond.models.presets import Preset
from millpond.queue.connection import Connections
from millpond.settings import Settings
from millpond.tasks import end_tasks, keep_running

# A failed background task is restarted after this.
AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Services:
    """API keys and their limits are kept with the home queue, to which ``redis`` leads.

    ``closing`` is set when the process begins to stop: long answers end then.
    """

    settings: Settings
    redis: Redis
    directory: Directory
    metrics: Metrics
    gate: Gate
    open_answers: OpenAnswers
    readiness: ReadinessCheck
    page: PageFiles
    files: Files
    storage: Storage
    webhooks: WebhookCheck
    batches: Batches
    background_jobs: BackgroundJobs
    closing: asyncio.Event

    @property
    def home(self) -> ServedQueue:
        """The queue of the settings."""
        return self.directory.home


@contextlib.asynccontextmanager
async def open_services(
    settings: Settings, preset: Preset, metrics: Metrics
) -> AsyncIterator[Services]:
    """Opens no connection: without Redis the API starts too, and reports that it is not ready."""
    connections = Connections(settings.redis_url)
    redis = connections.to_queue(settings.queue)
    directory = Directory(connections, settings, preset)
    keys = ApiKeys(redis, directory.home.queue.keys)
    limiter = RateLimiter(redis, directory.home.queue.keys)
    services = Services(
        settings=settings,
        redis=redis,
        directory=directory,
        metrics=metrics,
        gate=Gate(keys, limiter, required=settings.auth_required),
        open_answers=OpenAnswers(keys, settings.max_streams_per_key),
        readiness=ReadinessCheck(directory),
        page=PageFiles(),
        files=Files(redis, settings.queue),
        storage=Storage(settings.files_place),
        webhooks=WebhookCheck(settings),
        batches=Batches(redis, settings.queue),
        background_jobs=BackgroundJobs(settings.redis_url, settings.queue),
        closing=asyncio.Event(),
    )
    background = [
        asyncio.create_task(keep_running(name, work, AGAIN_S), name=name)
        for name, work in (
            ("directory", directory.refresh_forever),
            ("revoked-keys", services.open_answers.watch_forever),
            ("watch", lambda: watch_queue(redis, settings)),
        )
    ]
    try:
        yield services
    finally:
        services.closing.set()
        await end_tasks(*background)
        services.webhooks.close()
        await directory.close()
        services.background_jobs.close()
        await connections.aclose()


def services_of(app: FastAPI) -> Services:
    return cast(Services, app.state.services)


async def _services(request: Request) -> Services:
    return services_of(request.app)


Api = Annotated[Services, Depends(_services)]
