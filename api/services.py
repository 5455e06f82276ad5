"""Everything that the routes use, built once for each application and closed with it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, FastAPI, Request
from redis.asyncio import Redis

from api.gate import Gate
from api.metrics import Metrics
from api.monitor import QueueMonitor
from api.open_answers import OpenAnswers
from api.submissions import SubmitBatcher
from api.sweeper import sweep_forever
from api.tokenizing import Tokenizing
from api.watch import watch_queue
from millpond.api_keys import ApiKeys
from millpond.connection import connect
from millpond.presets import Preset
from millpond.queue import JobQueue
from millpond.rate_limits import RateLimiter
from millpond.results import Results
from millpond.settings import Settings
from millpond.subscriptions import Subscriptions
from millpond.tasks import end_tasks


@dataclass(frozen=True, slots=True)
class Services:
    """``closing`` is set when the process begins to stop: long answers end then."""

    settings: Settings
    preset: Preset
    redis: Redis
    queue: JobQueue
    results: Results
    submissions: SubmitBatcher
    monitor: QueueMonitor
    tokenizing: Tokenizing
    metrics: Metrics
    gate: Gate
    open_answers: OpenAnswers
    closing: asyncio.Event


@contextlib.asynccontextmanager
async def open_services(
    settings: Settings, preset: Preset, metrics: Metrics
) -> AsyncIterator[Services]:
    """Touches no network itself: without Redis the API starts too, and says it is not ready."""
    redis = connect(settings.redis_url)
    subscriptions = Subscriptions(redis)
    results = Results(redis, settings.queue, subscriptions)
    queue = JobQueue(redis, settings.queue, settings.queue_options())
    keys = ApiKeys(redis, queue.keys)
    services = Services(
        settings=settings,
        preset=preset,
        redis=redis,
        queue=queue,
        results=results,
        submissions=SubmitBatcher(queue),
        monitor=QueueMonitor(results),
        tokenizing=Tokenizing(settings, preset),
        metrics=metrics,
        gate=Gate(keys, RateLimiter(redis, queue.keys), required=settings.auth_required),
        open_answers=OpenAnswers(keys, settings.max_streams_per_key),
        closing=asyncio.Event(),
    )
    background = [
        asyncio.create_task(services.tokenizing.load(), name="load-tokenizer"),
        asyncio.create_task(sweep_forever(queue), name="sweeper"),
        asyncio.create_task(services.open_answers.watch_forever(), name="revoked-keys"),
        asyncio.create_task(watch_queue(redis, settings), name="watch"),
    ]
    try:
        yield services
    finally:
        services.closing.set()
        await end_tasks(*background)
        services.tokenizing.close()
        await subscriptions.close()
        await redis.aclose()


def services_of(app: FastAPI) -> Services:
    return cast(Services, app.state.services)


async def _services(request: Request) -> Services:
    return services_of(request.app)


Api = Annotated[Services, Depends(_services)]
