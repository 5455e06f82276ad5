"""Jobs in pages: of one status, or the dead letters. Reads only; nothing is scanned that is not listed.

A cursor names the last entry of its page, so a page stays right while jobs come and go around it: what
was there all the time is listed once. What moves meanwhile, as from queued to running, may be missed.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from redis.asyncio import Redis

from millpond.errors import InvalidRequestError, JobNotFoundError
from millpond.messages import JobError, JobRequest, JobStatus, Priority
from millpond.messages.stored_results import unpack
from millpond.queue.keys import Keys
from millpond.queue.scripts import raising_unavailable

MAX_PAGE = 200
# Entries of one look at Redis, and of one page; a page that has looked at so many ends early.
LOOK = 200
MAX_LOOKS = 2_000
CURSOR_PATTERN = r"^([0-9])~([0-9]{0,20})~([A-Za-z0-9_.:-]{1,64})$"
_CURSOR = re.compile(CURSOR_PATTERN)
_FIELDS = ("status", "tenant", "priority", "created", "attempts", "claimed", "finished", "deaths")


def retry_key(id: str) -> str:
    """The idempotency key under which a dead letter runs again: once, however often it is asked for."""
    return f"retry {id}"


@dataclass(frozen=True, slots=True)
class ListedJob:
    """What a job's record says. ``error`` is set for dead letters only."""

    id: str
    status: JobStatus
    tenant: str
    priority: Priority
    created_ms: int
    attempts: int
    claimed_ms: int | None
    finished_ms: int | None
    deaths: int
    error: JobError | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """``cursor`` leads to the next one; None: this is the last. A page may be short, or empty."""

    jobs: list[ListedJob]
    cursor: str | None


class JobLists:
    """All methods raise QueueUnavailableError when Redis cannot serve.

    ``tenant`` None lists the jobs of all, where there is one index for all.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def jobs(
        self, status: JobStatus, *, tenant: str, limit: int = MAX_PAGE, cursor: str | None = None
    ) -> Page:
        """The tenant's jobs of one status: queued ones by priority in the order of their lanes, running
        ones by id, ended ones newest first, of the last that ended (`QueueOptions.listed_max`).

        Raises InvalidRequestError for a cursor that is none.
        """
        keys = self._keys
        sources: list[_Source]
        if status is JobStatus.QUEUED:
            lanes = [_Ranked(self._redis, keys.lane(p, tenant)) for p in Priority]
            sources = [*lanes, _ById(self._retries)]
        elif status is JobStatus.RUNNING:
            sources = [_ById(self._leased)]
        else:
            sources = [_Ranked(self._redis, keys.ended(tenant), newest_first=True)]
        return await self._page(
            sources, limit, cursor, lambda job: job.status is status and job.tenant == tenant
        )

    async def dead(
        self, *, tenant: str | None = None, limit: int = MAX_PAGE, cursor: str | None = None
    ) -> Page:
        """The dead letters, newest first, with their errors. Raises InvalidRequestError as `jobs`."""
        source = _Ranked(self._redis, self._keys.dead, newest_first=True)
        page = await self._page([source], limit, cursor, lambda job: tenant in (None, job.tenant))
        return Page(await self._with_errors(page.jobs), page.cursor)

    async def dead_letter(
        self, id: str, *, tenant: str | None = None
    ) -> tuple[ListedJob, JobRequest]:
        """One of them and what was asked. Raises JobNotFoundError for what is no dead letter."""
        [job] = await self._records([id])
        with raising_unavailable():
            listed = await self._redis.zscore(self._keys.dead, id)
            body = await self._redis.get(self._keys.body(id))
        if job is None or listed is None or body is None or tenant not in (None, job.tenant):
            raise JobNotFoundError(id)
        [job] = await self._with_errors([job])
        return job, JobRequest.from_json(body)

    async def _page(
        self,
        sources: "Sequence[_Source]",
        limit: int,
        cursor: str | None,
        wanted: Callable[[ListedJob], bool],
    ) -> Page:
        place, score, last = _parse(cursor, len(sources))
        found: list[ListedJob] = []
        looks = 0
        while place < len(sources):
            with raising_unavailable():
                entries = await sources[place].after(score, last)
            for (id, score), job in zip(
                entries, await self._records([id for id, _ in entries]), strict=True
            ):
                last = id
                if job is not None and wanted(job):
                    found.append(job)
                    if len(found) == limit:
                        return Page(found, f"{place}~{score}~{last}")
            looks += len(entries)
            if len(entries) < LOOK:
                place, score, last = place + 1, "", ""
            elif looks >= MAX_LOOKS:
                return Page(found, f"{place}~{score}~{last}")
        return Page(found, None)

    async def _records(self, ids: Sequence[str]) -> list[ListedJob | None]:
        if not ids:
            return []
        with raising_unavailable():
            async with self._redis.pipeline(transaction=False) as pipe:
                for id in ids:
                    pipe.hmget(self._keys.job(id), _FIELDS)
                records: list[Any] = await pipe.execute()
        return [_listed(id, record) for id, record in zip(ids, records, strict=True)]

    async def _with_errors(self, jobs: Sequence[ListedJob]) -> list[ListedJob]:
        if not jobs:
            return []
        with raising_unavailable():
            stored: Any = await self._redis.mget([self._keys.result(job.id) for job in jobs])
        errors = [None if text is None else unpack(text).error for text in stored]
        return [replace(job, error=error) for job, error in zip(jobs, errors, strict=True)]

    async def _leased(self) -> set[bytes]:
        found: Any = await self._redis.zrange(self._keys["leases"], 0, -1)
        return set(found)

    async def _retries(self) -> set[bytes]:
        """Queued outside the lanes."""
        delayed: Any = await self._redis.zrange(self._keys["delayed"], 0, -1)
        groups: Any = await self._redis.lrange(self._keys["suspects"], 0, -1)
        return {*delayed, *(id for group in groups for id in group.split()[1:])}


class _Source(Protocol):
    async def after(self, score: str, last: str) -> list[tuple[str, str]]:
        """Up to LOOK pairs of id and score behind the one that is named, or from the beginning."""


class _Ranked:
    """A sorted set."""

    def __init__(self, redis: Redis, key: str, *, newest_first: bool = False) -> None:
        self._redis = redis
        self._key = key
        self._reverse = newest_first

    async def after(self, score: str, last: str) -> list[tuple[str, str]]:
        start = 0
        if last:
            rank: Any = await (self._redis.zrevrank if self._reverse else self._redis.zrank)(
                self._key, last
            )
            # One that has left is as good as the place where it stood.
            bounds = (f"({score}", "+inf") if self._reverse else ("-inf", f"({score}")
            start = await self._redis.zcount(self._key, *bounds) if rank is None else rank + 1
        found: Any = await self._redis.zrange(
            self._key, start, start + LOOK - 1, desc=self._reverse, withscores=True
        )
        return [(id.decode(), f"{score:.0f}") for id, score in found]


class _ById:
    """A set in which all that matters fits into one look; in the order of ids, which stand still."""

    def __init__(self, ids: Callable[[], Any]) -> None:
        self._ids = ids

    async def after(self, score: str, last: str) -> list[tuple[str, str]]:
        ids = sorted(id.decode() for id in await self._ids())
        return [(id, "") for id in ids if id > last][:LOOK]


def _parse(cursor: str | None, sources: int) -> tuple[int, str, str]:
    if cursor is None:
        return 0, "", ""
    found = _CURSOR.fullmatch(cursor)
    if found is None or int(found[1]) >= sources:
        raise InvalidRequestError("cursor", "must be the cursor of an earlier page of this list")
    return int(found[1]), found[2], found[3]


def _listed(id: str, record: Sequence[bytes | None]) -> ListedJob | None:
    """None: the job is forgotten."""
    if record[0] is None:
        return None
    fields = {
        name: value.decode()
        for name, value in zip(_FIELDS, record, strict=True)
        if value is not None
    }
    return ListedJob(
        id=id,
        status=JobStatus(fields["status"]),
        tenant=fields["tenant"],
        priority=Priority(fields["priority"]),
        created_ms=int(fields["created"]),
        attempts=int(fields["attempts"]),
        claimed_ms=int(fields["claimed"]) if "claimed" in fields else None,
        finished_ms=int(fields["finished"]) if "finished" in fields else None,
        deaths=int(fields.get("deaths", 0)),
    )
