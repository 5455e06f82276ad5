"""The read side of a queue: get a job, wait for it, follow it live, replay its events."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from millpond.errors import InvalidRequestError, JobNotFoundError
from millpond.messages import EventType, JobEvent, JobResult, JobStatus, Priority
from millpond.messages.stored_results import unpack
from millpond.messages.worker_state import RegisteredWorker, read_entry
from millpond.queue.batching import Batcher
from millpond.queue.keys import Keys
from millpond.queue.scripts import Scripts, raising_unavailable
from millpond.queue.subscriptions import GAP, Expectation, Subscriptions

REPLAY_PAGE = 500
ENTRY_ID_PATTERN = re.compile(r"\d{1,19}(-\d{1,19})?")
# Of `Results.get`, and of the first page of a replay: how many one round trip carries.
LOOKS_A_TRIP = 200


@dataclass(frozen=True, slots=True)
class QueueState:
    """What is in the queue now, by priority, and what has left it so far, by status.

    ``waiting_ms`` is how long the next job has waited, of the tenant whose next has waited longest; 0 where
    nothing waits. ``leases_lost``, ``retries`` and ``dead_letters`` count since the queue was made, ``dead``
    are the dead letters that are kept. ``unfinished`` counts the queued and running jobs of each tenant that
    has any. Webhooks are pending until they are delivered or, after their last try, dropped.
    """

    queued: dict[Priority, int]
    waiting_ms: dict[Priority, int]
    running: int
    accepted: dict[Priority, int]
    done: dict[JobStatus, int]
    dead: int
    delayed: int
    missing: int
    leases_lost: int
    retries: int
    dead_letters: int
    webhooks_pending: int
    webhooks_delivered: int
    webhooks_dropped: int
    unfinished: dict[str, int]
    workers: list[RegisteredWorker]

    @property
    def depth(self) -> int:
        return sum(self.queued.values())

    @property
    def jobs_per_s(self) -> float:
        """Jobs that the live workers finish a second, together."""
        return sum(w.state.jobs_per_s for w in self.workers if w.alive)


@dataclass(frozen=True, slots=True)
class JobView:
    """A job's current state. ``position`` is its place in its tenant's lane; 1 is next.

    ``ahead`` counts the queued jobs that run before it: those before it in its lane, those that the other
    tenants' fair shares put before it, and those of higher priorities. ``ahead_exact``: the count is not
    an estimate, though shorter jobs that arrive later may still go first. Suspects are in no lane:
    position 1, none ahead. ``retry_in_ms`` is set while a retry is delayed.
    """

    id: str
    status: JobStatus
    tenant: str
    priority: Priority
    attempts: int
    created_ms: int
    claimed_ms: int | None
    worker: str | None
    cancelling: bool
    streams: bool
    position: int | None
    ahead: int | None
    ahead_exact: bool
    retry_in_ms: int | None
    result: JobResult | None


class Results:
    """All methods raise QueueUnavailableError when Redis cannot serve.

    ``tenant`` restricts a method to that tenant's jobs; the others are not found.
    """

    def __init__(self, redis: Redis, queue: str, subscriptions: Subscriptions) -> None:
        self.keys = Keys(queue)
        self._redis = redis
        self._scripts = Scripts(redis, self.keys)
        self._subscriptions = subscriptions
        self._inspect: Batcher[tuple[str, str], Any] = Batcher(
            "inspect", lambda calls: self._scripts.run_many("inspect", calls), LOOKS_A_TRIP
        )
        self._read: Batcher[tuple[str, str], Any] = Batcher(
            "replay", self._read_pages, LOOKS_A_TRIP
        )

    async def get(self, id: str, *, tenant: str | None = None) -> JobView:
        """Raises JobNotFoundError."""
        answer = await self._inspect((id, tenant or ""))
        if not answer:
            raise JobNotFoundError(id)
        return _job_view(id, *answer)

    async def get_results(self, ids: Sequence[str]) -> dict[str, JobResult]:
        """The stored results of the jobs that have ended, in one round trip."""
        if not ids:
            return {}
        with raising_unavailable():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.mget([self.keys.result(id) for id in ids])
                for id in ids:
                    pipe.hget(self.keys.job(id), "finished")
                found, *finished = await pipe.execute()
        return {
            id: unpack(value, int(ended_ms))
            for id, value, ended_ms in zip(ids, found, finished, strict=True)
            if value is not None and ended_ms is not None
        }

    async def wait(self, id: str, timeout_s: float, *, tenant: str | None = None) -> JobView:
        """The job once it has ended, or its current state when the time is up."""
        view = await self.get(id, tenant=tenant)
        if view.status.terminal or timeout_s <= 0:
            return view
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        async with self._listen(id) as inbox:
            while (left := end - loop.time()) > 0:
                message = await _next(inbox, left)
                if message not in (None, GAP) and b'"type":"finished"' not in message[:64]:
                    continue
                view = await self.get(id, tenant=tenant)
                if view.status.terminal:
                    return view
        return await self.get(id, tenant=tenant)

    async def subscribe(
        self, id: str, after: str = "0", *, tenant: str | None = None
    ) -> AsyncIterator[JobEvent]:
        """Every event after the stream entry ``after``, oldest first, up to ``finished``.

        Ends with exactly one FINISHED event, also for a job that keeps no stream or whose stream is
        gone. Events carry their ``event_id``; pass the last one seen to resume from there.
        Raises InvalidRequestError if ``after`` is not an entry id.
        """
        if not ENTRY_ID_PATTERN.fullmatch(after):
            raise InvalidRequestError(
                "after", f"{after[:64]!r} is no event id such as 1700000000000-0"
            )
        await self.get(id, tenant=tenant)
        async with self._listen(id) as inbox:
            while True:
                message = await inbox.get()
                if message == GAP:
                    # Read before the replay: a job that has ended by now has its last event in the stream.
                    last = await self._finished(id, tenant)
                    async for event in self._replay(id, after):
                        after = event.event_id
                        yield await self._with_result(event, tenant)
                        if event.type is EventType.FINISHED:
                            return
                    if last is not None:
                        yield last
                        return
                    continue
                event = JobEvent.model_validate_json(message)
                if event.event_id and not _later(event.event_id, after):
                    continue
                after = event.event_id or after
                yield await self._with_result(event, tenant)
                if event.type is EventType.FINISHED:
                    return

    def _listen(self, id: str) -> AbstractAsyncContextManager["asyncio.Queue[bytes]"]:
        expected = Expectation(alive=self.keys.job(id), over=self.keys.result(id))
        return self._subscriptions.listen(self.keys.events(id), expected)

    async def _read_pages(self, wanted: Sequence[tuple[str, str]]) -> Any:
        with raising_unavailable():
            async with self._redis.pipeline(transaction=False) as pipe:
                for id, after in wanted:
                    pipe.xrange(self.keys.events(id), min=f"({after}", max="+", count=REPLAY_PAGE)
                return await pipe.execute()

    async def _replay(self, id: str, after: str) -> AsyncIterator[JobEvent]:
        while True:
            page = await self._read((id, after))
            for entry, fields in page:
                after = entry.decode()
                event = JobEvent.model_validate_json(fields[b"event"])
                yield event.model_copy(update={"event_id": after})
            if len(page) < REPLAY_PAGE:
                return

    async def _with_result(self, event: JobEvent, tenant: str | None) -> JobEvent:
        """The event; if it is the last one, with the stored result. Raises JobNotFoundError."""
        if event.type is not EventType.FINISHED:
            return event
        view = await self.get(event.id, tenant=tenant)
        return event.model_copy(update={"result": view.result})

    async def _finished(self, id: str, tenant: str | None) -> JobEvent | None:
        """The ``finished`` event of a job that has ended, built from its stored result."""
        view = await self.get(id, tenant=tenant)
        if view.result is None:
            return None
        return JobEvent(
            type=EventType.FINISHED,
            id=id,
            attempt=view.attempts,
            status=view.status,
            finished_ms=view.result.finished_ms,
            result=view.result,
        )

    async def queue_state(self) -> QueueState:
        raw, dead, delayed, open, workers, now_ms, since, owed = await self._scripts.run("state")
        counts = {name: int(number) for name, number in _pairs(raw).items()}
        return QueueState(
            queued={p: counts.get(f"queued:{p}", 0) for p in Priority},
            waiting_ms={
                p: 0 if since_ms is None else max(0, now_ms - since_ms)
                for p, since_ms in zip(Priority, since, strict=True)
            },
            running=counts.get("running", 0),
            accepted={p: counts.get(f"accepted:{p}", 0) for p in Priority},
            done={s: counts.get(f"done:{s}", 0) for s in JobStatus if s.terminal},
            dead=dead,
            delayed=delayed,
            missing=counts.get("missing", 0),
            leases_lost=counts.get("lost", 0),
            retries=counts.get("retried", 0),
            dead_letters=counts.get("buried", 0),
            webhooks_pending=owed,
            webhooks_delivered=counts.get("delivered", 0),
            webhooks_dropped=counts.get("undelivered", 0),
            unfinished={tenant: int(number) for tenant, number in _pairs(open).items()},
            workers=sorted(
                (
                    worker
                    for id, entry in zip(workers[::2], workers[1::2], strict=True)
                    if (worker := read_entry(id.decode(), entry, now_ms))
                ),
                key=lambda w: w.id,
            ),
        )


async def _next(inbox: "asyncio.Queue[bytes]", timeout_s: float) -> bytes | None:
    # Not wait_for: on Python 3.11 it forgets that it was cancelled when a message comes at that moment,
    # and a stream whose client had left went on for ever.
    try:
        async with asyncio.timeout(timeout_s):
            return await inbox.get()
    except TimeoutError:
        return None


def _later(entry: str, other: str) -> bool:
    """Whether stream entry id ``entry`` comes after ``other``."""

    def parts(text: str) -> tuple[int, int]:
        ms, _, seq = text.partition("-")
        return int(ms), int(seq or 0)

    return parts(entry) > parts(other)


def _pairs(flat: list[bytes]) -> dict[str, str]:
    return {k.decode(): v.decode() for k, v in zip(flat[::2], flat[1::2], strict=True)}


def _job_view(
    id: str,
    record: list[bytes],
    result: bytes | None,
    now_ms: int,
    counts: list[bytes],
    place: int | None,
    others: int,
) -> JobView:
    fields = _pairs(record)
    numbers = {k: int(v) for k, v in _pairs(counts).items()}
    status = JobStatus(fields["status"])
    priority = Priority(fields["priority"])
    position = ahead = retry_in_ms = None
    elsewhere = 0
    if status is JobStatus.QUEUED and place is not None:
        above = list(Priority)[: list(Priority).index(priority)]
        elsewhere = others + sum(numbers.get(f"queued:{p}", 0) for p in above)
        position, ahead = place + 1, place + elsewhere
    elif status is JobStatus.QUEUED:
        position, ahead = 1, 0
        if "due" in fields:
            retry_in_ms = max(0, int(fields["due"]) - now_ms)
    ended = None if result is None else unpack(result, int(fields["finished"]))
    claimed_ms: str | int | None = fields.get("claimed")
    worker = fields.get("worker")
    if ended is not None and ended.receipt is not None:
        claimed_ms, worker = ended.receipt.claimed_ms, ended.receipt.worker
    return JobView(
        id=id,
        status=status,
        tenant=fields["tenant"],
        priority=priority,
        attempts=int(fields["attempts"]),
        created_ms=int(fields["created"]),
        claimed_ms=int(claimed_ms) if claimed_ms is not None else None,
        worker=worker,
        cancelling="cancel" in fields and not status.terminal,
        streams=fields["stream"] == "1",
        position=position,
        ahead=ahead,
        ahead_exact=elsewhere == 0,
        retry_in_ms=retry_in_ms,
        result=ended,
    )
