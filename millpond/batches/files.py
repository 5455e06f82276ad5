"""The records of files: what tenants upload, and what batches write. Their bytes are in the storage."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from redis.asyncio import Redis

from millpond.batches.keys import BatchKeys
from millpond.errors import FileInUseError, FilesFullError, UnknownFileError
from millpond.queue.scripts import Scripts, raising_unavailable

LUA: Final = "millpond.batches"
UPLOADED: Final = "batch"
WRITTEN: Final = "batch_output"
PAGE = 200
SWEEP_LIMIT = 500

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """``growing``: its batch still writes it. ``rows`` are those of an output."""

    id: str
    tenant: str
    filename: str
    purpose: str
    bytes: int
    created_ms: int
    expires_ms: int | None
    batch: str | None
    growing: bool
    rows: int


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    items: list[T]
    has_more: bool


def new_file_id() -> str:
    return f"file-{os.urandom(12).hex()}"


class Files:
    """All methods raise QueueUnavailableError when Redis cannot serve."""

    def __init__(self, redis: Redis, home: str) -> None:
        self.keys = BatchKeys(home)
        self._redis = redis
        self._scripts = Scripts(redis, self.keys, LUA)

    async def add(
        self,
        id: str,
        tenant: str,
        *,
        filename: str,
        object_name: str,
        num_bytes: int,
        ttl_s: float,
        max_tenant_bytes: int,
    ) -> FileRecord:
        """Record an uploaded file whose bytes are in the storage. Raises FilesFullError."""
        answer, stored = await self._scripts.run(
            "file_add",
            *(id, tenant, max_tenant_bytes, round(ttl_s * 1000), object_name, num_bytes),
            *("filename", filename, "purpose", UPLOADED),
        )
        if answer == b"full":
            raise FilesFullError(stored, max_tenant_bytes)
        return await self.get(id, tenant)

    async def get(self, id: str, tenant: str, *, field: str = "file_id") -> FileRecord:
        """Raises UnknownFileError, which names the field."""
        with raising_unavailable():
            found: Any = await self._redis.hgetall(self.keys.of("file", id))
        if not found or found[b"tenant"].decode() != tenant:
            raise UnknownFileError(field, id)
        return _record(id, found)

    async def parts(self, id: str) -> list[tuple[str, int]]:
        """The objects of a file, in order, with their bytes; none once it is deleted."""
        with raising_unavailable():
            found: Any = await self._redis.lrange(self.keys.of("parts", id), 0, -1)
        pairs = [part.decode().split(" ") for part in found]
        return [(name, int(num_bytes)) for name, num_bytes in pairs]

    async def page(
        self,
        tenant: str,
        *,
        after: str | None,
        limit: int,
        newest_first: bool = True,
        purpose: str | None = None,
    ) -> Page[FileRecord]:
        """Files of the tenant behind ``after``. Raises UnknownFileError if that is none of its own."""
        listed = self.keys.of("files", tenant)
        found: list[FileRecord] = []
        with raising_unavailable():
            start = await place_after(self._redis, listed, after, newest_first=newest_first)
            if start is None:
                raise UnknownFileError("after", after or "")
            while len(found) <= limit:
                ids: Any = await self._redis.zrange(
                    listed, start, start + PAGE - 1, desc=newest_first
                )
                async with self._redis.pipeline(transaction=False) as pipe:
                    for id in ids:
                        pipe.hgetall(self.keys.of("file", id.decode()))
                    records = await pipe.execute()
                found += [
                    _record(id.decode(), record)
                    for id, record in zip(ids, records, strict=True)
                    if record and purpose in (None, record[b"purpose"].decode())
                ]
                if len(ids) < PAGE:
                    break
                start += PAGE
        return Page(found[:limit], len(found) > limit)

    async def remove(self, id: str, tenant: str) -> None:
        """Forget it; its bytes are removed a little later. Raises UnknownFileError, FileInUseError."""
        answer = await self._scripts.run("file_remove", id, tenant)
        if answer == b"none":
            raise UnknownFileError("file_id", id)
        if answer == b"growing":
            raise FileInUseError(id)

    async def doom(self, *object_names: str, in_s: float) -> None:
        """Called before objects are written: those that no record names by then are removed."""
        await self._scripts.run("doom", round(in_s * 1000), *object_names)

    async def sweep(self) -> list[str]:
        """Forget files that have expired. Returns objects that may be removed; then call `removed`."""
        _, objects = await self._scripts.run("file_sweep", SWEEP_LIMIT)
        return [name.decode() for name in objects]

    async def removed(self, object_names: list[str]) -> None:
        with raising_unavailable():
            await self._redis.zrem(self.keys["doomed"], *object_names)


async def place_after(
    redis: Redis, listed: str, after: str | None, *, newest_first: bool
) -> int | None:
    """The place in a list at which the page behind this id begins; None if it is not in the list."""
    if after is None:
        return 0
    rank: Any = await (redis.zrevrank if newest_first else redis.zrank)(listed, after)
    return None if rank is None else rank + 1


def _record(id: str, found: Mapping[bytes, bytes]) -> FileRecord:
    fields = {name.decode(): value.decode() for name, value in found.items()}
    return FileRecord(
        id=id,
        tenant=fields["tenant"],
        filename=fields["filename"],
        purpose=fields["purpose"],
        bytes=int(fields["bytes"]),
        created_ms=int(fields["created"]),
        expires_ms=int(fields["expires"]) if "expires" in fields else None,
        batch=fields.get("batch"),
        growing="growing" in fields,
        rows=int(fields.get("rows", 0)),
    )
