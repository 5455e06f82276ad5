"""What the watchers of a queue see, looked up once for all of them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from api.history import EVERY_S, History
from api.monitor import QueueMonitor
from millpond.errors import QueueUnavailableError
from millpond.messages.worker_rows import WorkerRows
from millpond.queue.results import QueueState
from millpond.queue.subscriptions import GAP, Subscriptions
from millpond.queue.watching import QueueOverview, QueueWatch
from millpond.tasks import end_tasks, keep_running

LOOK_EVERY_S = 1.0
# Workers publish their rows for so long after the last look.
ROWS_FOR_S = 5.0
# A watcher that is further behind misses what comes meanwhile.
MAX_BACKLOG = 200
# A failed background task is restarted after this.
AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class QueueLook:
    """The whole queue, once a second."""

    state: QueueState
    overview: QueueOverview


@dataclass(frozen=True, slots=True)
class QueueAway:
    """Redis cannot serve now."""


FeedItem = QueueLook | QueueAway | WorkerRows


class QueueFeed:
    """One look at Redis a second and one subscription, however many watch; none while nobody does.

    Run `keep_history` as a task, watched or not.
    """

    def __init__(
        self, watch: QueueWatch, monitor: QueueMonitor, subscriptions: Subscriptions
    ) -> None:
        self.history = History()
        self._watch = watch
        self._monitor = monitor
        self._subscriptions = subscriptions
        self._watchers: set[asyncio.Queue[FeedItem]] = set()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def watched(self) -> bool:
        return bool(self._watchers)

    async def keep_history(self) -> None:
        while True:
            with contextlib.suppress(QueueUnavailableError):
                self.history.add(await self._monitor.state())
            await asyncio.sleep(EVERY_S)

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator["asyncio.Queue[FeedItem]"]:
        """The items from now on."""
        inbox: asyncio.Queue[FeedItem] = asyncio.Queue()
        self._watchers.add(inbox)
        if not self._tasks:
            works = {"looks": self._look_forever, "rows": self._pass_rows_on}
            self._tasks = [
                asyncio.create_task(keep_running(name, work, AGAIN_S), name=name)
                for name, work in works.items()
            ]
        try:
            yield inbox
        finally:
            self._watchers.discard(inbox)
            if not self._watchers:
                await self.close()

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        await end_tasks(*tasks)

    async def _look_forever(self) -> None:
        while True:
            try:
                await self._watch.ask_for_rows(ROWS_FOR_S)
                overview = await self._watch.overview()
                state = await self._monitor.state(max_age_s=0)
                self._tell(QueueLook(state, overview))
            except QueueUnavailableError:
                self._tell(QueueAway())
            await asyncio.sleep(LOOK_EVERY_S)

    async def _pass_rows_on(self) -> None:
        async with self._subscriptions.listen(self._watch.channel) as messages:
            while True:
                message = await messages.get()
                if message != GAP:
                    self._tell(WorkerRows.model_validate_json(message))

    def _tell(self, item: FeedItem) -> None:
        for inbox in self._watchers:
            if inbox.qsize() < MAX_BACKLOG:
                inbox.put_nowait(item)
