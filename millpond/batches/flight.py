"""The rows of a batch that are in the queues: submitted, and not known to have ended."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from millpond.errors import MillpondError, QueueFullError
from millpond.messages import JobEvent, JobResult
from millpond.queue.job_queue import JobQueue
from millpond.queue.results import Results
from millpond.queue.submission import NewJob
from millpond.queue.subscriptions import GAP, Subscriptions

# Pub/sub is a hint: look at the stored results at least this often.
LOOK_AGAIN_S = 5.0
# Messages are collected for this long, so that one round trip reads many results.
TICK_S = 0.05
READS_A_TRIP = 500
CANCELS_AT_ONCE = 50

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """A queue that takes rows, both its sides."""

    queue: JobQueue
    results: Results


class Flight(Generic[T]):
    """``T`` is what the owner knows of a row. Use it within ``async with flight.listening()``."""

    def __init__(self, places: Mapping[str, Place], subscriptions: Subscriptions) -> None:
        self._places = places
        self._subscriptions = subscriptions
        self._waiting: dict[str, tuple[str, T]] = {}
        self._inboxes: list[asyncio.Queue[bytes]] = []
        self._look_at_s = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for place in self._places.values():
                listening = self._subscriptions.listen(place.queue.keys.channel)
                self._inboxes.append(await stack.enter_async_context(listening))
            yield

    def expect(self, place: str, id: str, row: T) -> None:
        """A row whose job is in the queue already."""
        self._waiting[id] = place, row

    async def submit(self, place: str, rows: Sequence[tuple[NewJob, T]]) -> list[tuple[NewJob, T]]:
        """Returns the rows for which the queue had no room. Jobs that it knows already are waited for.

        Raises QueueUnavailableError.
        """
        answers = await self._places[place].queue.submit_many([job for job, _ in rows])
        full = []
        for (job, row), answer in zip(rows, answers, strict=True):
            if isinstance(answer, QueueFullError):
                full.append((job, row))
            elif isinstance(answer, MillpondError):
                raise answer
            else:
                self._waiting[answer.id] = place, row
                if answer.status.terminal:  # no message will tell of it
                    self._look_at_s = 0.0
        return full

    async def ended(self) -> list[tuple[T, JobResult]]:
        """Rows that have ended, after a short while. Raises QueueUnavailableError."""
        await asyncio.sleep(TICK_S)
        found: list[tuple[T, JobResult]] = []
        by_place: dict[str, list[str]] = {}
        for id in self._ids_with_news():
            by_place.setdefault(self._waiting[id][0], []).append(id)
        for place, ids in by_place.items():
            for start in range(0, len(ids), READS_A_TRIP):
                part = ids[start : start + READS_A_TRIP]
                results = await self._places[place].results.get_results(part)
                found += [(self._waiting.pop(id)[1], result) for id, result in results.items()]
        return found

    async def cancel(self) -> list[T]:
        """Cancel all that wait. Returns the rows whose jobs are not there, which never end."""
        waiting = list(self._waiting.items())
        gone = []
        for start in range(0, len(waiting), CANCELS_AT_ONCE):
            part = waiting[start : start + CANCELS_AT_ONCE]
            statuses = await asyncio.gather(
                *(self._places[place].queue.cancel(id) for id, (place, _) in part)
            )
            for (id, (_, row)), status in zip(part, statuses, strict=True):
                if status is None:
                    del self._waiting[id]
                    gone.append(row)
        return gone

    def _ids_with_news(self) -> Sequence[str]:
        """Ids named by finished messages; all when messages may have been lost."""
        now_s = asyncio.get_running_loop().time()
        ids: dict[str, None] = {}
        everything = now_s >= self._look_at_s
        for inbox in self._inboxes:
            while not inbox.empty():
                message = inbox.get_nowait()
                if message == GAP:
                    everything = True
                elif b'"type":"finished"' in message[:64]:
                    ids[JobEvent.model_validate_json(message).id] = None
        if everything:
            self._look_at_s = now_s + LOOK_AGAIN_S
            return list(self._waiting)
        return [id for id in ids if id in self._waiting]
