"""The queues behind this API: one for each model, including the one in its settings."""

import asyncio
import contextlib
from collections import OrderedDict
from dataclasses import dataclass

import structlog
from redis.asyncio import Redis

from api.feed import QueueFeed
from api.monitor import QueueMonitor
from api.requests.submissions import SubmitBatcher
from api.requests.tokenizing import Tokenizing
from api.sweeper import sweep_forever
from millpond.errors import (
    IdempotencyConflictError,
    JobNotFoundError,
    ModelLoadError,
    QueueUnavailableError,
    UnknownModelError,
)
from millpond.listing import JobLists
from millpond.models.presets import Preset
from millpond.queue.connection import Connections
from millpond.queue.directory import AnnouncedQueue, QueueDirectory
from millpond.queue.job_queue import JobQueue
from millpond.queue.results import Results
from millpond.queue.subscriptions import Subscriptions
from millpond.settings import Settings
from millpond.tasks import end_tasks, keep_running

REFRESH_S = 1.0
LOOK_AGAIN_S = 30.0
MAX_REMEMBERED_JOBS = 10_000
# A failed background task is restarted after this.
AGAIN_S = 1.0

log = structlog.get_logger("millpond.api")


@dataclass(frozen=True, slots=True)
class ServedQueue:
    """One queue and what the routes need of it. ``model`` is the name that jobs ask for."""

    name: str
    model: str
    queue: JobQueue
    results: Results
    lists: JobLists
    submissions: SubmitBatcher
    monitor: QueueMonitor
    feed: QueueFeed
    tokenizing: Tokenizing


class Directory:
    """Run `refresh_forever` as a task; it follows what workers announce.

    Requests without a model go to the ``home`` queue, the one of the settings, whose model needs no
    worker to be known.
    """

    def __init__(self, connections: Connections, settings: Settings, preset: Preset) -> None:
        self._connections = connections
        self._subscriptions: dict[Redis, Subscriptions] = {}
        self._settings = settings
        self._announced = QueueDirectory(connections.to_directory())
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}
        self._look_again_s: dict[str, float] = {}  # for models whose files are not on this machine
        self._places: OrderedDict[str, ServedQueue] = OrderedDict()
        self.home = self._open(settings, preset, preset.name)
        self._queues = {settings.queue: self.home}

    @property
    def queues(self) -> list[ServedQueue]:
        """All queues, the home queue first."""
        return list(self._queues.values())

    def serving(self, model: str | None) -> ServedQueue:
        """The queue that serves this model. Raises UnknownModelError, which lists the known models."""
        if model is None:
            return self.home
        for served in self._queues.values():
            if served.model == model:
                return served
        names = ", ".join(sorted(served.model for served in self._queues.values()))
        raise UnknownModelError("model", f"{model!r} is not served here; there is {names}")

    async def find(self, model: str | None) -> ServedQueue:
        """As `serving`, for a model that may just have been announced. Raises QueueUnavailableError."""
        try:
            return self.serving(model)
        except UnknownModelError:
            await self.refresh()
            return self.serving(model)

    async def holding(self, id: str, tenant: str) -> ServedQueue:
        """The queue that has this job; the home queue if there is no such job.

        Raises QueueUnavailableError.
        """
        if len(self._queues) == 1:
            return self.home
        for served in self._likeliest_first(id):
            with contextlib.suppress(JobNotFoundError):
                await served.results.get(id, tenant=tenant)
                self.remember(id, served)
                return served
        return self.home

    async def check_unused_elsewhere(self, id: str, served: ServedQueue) -> None:
        """An Idempotency-Key is of one request, and so of one model. Raises IdempotencyConflictError."""
        for other in self._queues.values():
            if other is not served:
                with contextlib.suppress(JobNotFoundError):
                    await other.results.get(id)
                    raise IdempotencyConflictError(id)

    def remember(self, id: str, served: ServedQueue) -> None:
        """So that the job is looked up there first."""
        if served is not self.home:
            self._places[id] = served
            self._places.move_to_end(id)
            if len(self._places) > MAX_REMEMBERED_JOBS:
                self._places.popitem(last=False)

    def _likeliest_first(self, id: str) -> list[ServedQueue]:
        known = self._places.get(id)
        return (
            self.queues if known is None else [known, *(q for q in self.queues if q is not known)]
        )

    async def refresh_forever(self) -> None:
        while True:
            with contextlib.suppress(QueueUnavailableError):
                await self.refresh()
            await asyncio.sleep(REFRESH_S)

    async def refresh(self) -> None:
        """Raises QueueUnavailableError."""
        announced = dict(await self._announced.all())
        announced.pop(self.home.name, None)
        for name in self._queues.keys() - announced.keys() - {self.home.name}:
            await self._close(name)
        for name, about in announced.items():
            known = self._queues.get(name)
            if known is None or known.model != about.model:
                await self._close(name)
                await self._open_announced(name, about)

    async def close(self) -> None:
        for name in list(self._queues):
            await self._close(name)
        for subscriptions in self._subscriptions.values():
            await subscriptions.close()

    async def _open_announced(self, name: str, about: AnnouncedQueue) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s < self._look_again_s.get(name, now_s):
            return
        settings = self._settings.model_copy(
            update={
                "queue": name,
                "model": about.source,
                "engine": about.engine,
                "adapters": dict.fromkeys(about.adapters, ""),
                "remote_route": about.remote_route,
            }
        )
        try:
            preset = await asyncio.to_thread(settings.preset)
        except ModelLoadError as error:
            log.warning("model_not_found_here", model=about.model, queue=name, cause=str(error))
            self._look_again_s[name] = now_s + LOOK_AGAIN_S
            return
        self._queues[name] = self._open(settings, preset, about.model)

    def _open(self, settings: Settings, preset: Preset, model: str) -> ServedQueue:
        redis = self._connections.to_queue(settings.queue)
        subscriptions = self._subscriptions.setdefault(redis, Subscriptions(redis))
        queue = JobQueue(redis, settings.queue, settings.queue_options())
        results = Results(redis, settings.queue, subscriptions)
        tokenizing = Tokenizing(settings, preset, model)
        monitor = QueueMonitor(results)
        feed = QueueFeed(queue.watch, monitor, subscriptions)
        self._tasks[settings.queue] = [
            asyncio.create_task(keep_running("tokenizer", tokenizing.load, AGAIN_S)),
            asyncio.create_task(keep_running("sweeper", lambda: sweep_forever(queue), AGAIN_S)),
            asyncio.create_task(keep_running("history", feed.keep_history, AGAIN_S)),
        ]
        return ServedQueue(
            name=settings.queue,
            model=model,
            queue=queue,
            results=results,
            lists=JobLists(redis, queue.keys),
            submissions=SubmitBatcher(queue),
            monitor=monitor,
            feed=feed,
            tokenizing=tokenizing,
        )

    async def _close(self, name: str) -> None:
        served = self._queues.pop(name, None)
        if served is not None:
            await end_tasks(*self._tasks.pop(name))
            served.tokenizing.close()
            await served.feed.close()
