"""All batches, and who may work on one. Their state is changed here alone, by scripts."""

import os
from collections.abc import Sequence
from typing import Any

import orjson
from redis.asyncio import Redis

from millpond.batches.files import LUA, UPLOADED, Page, new_file_id, place_after
from millpond.batches.keys import BatchKeys
from millpond.batches.records import (
    BatchProblem,
    BatchRecord,
    BatchStatus,
    NewBatch,
    Part,
    RunningState,
    Turn,
    TurnOverError,
    read_record,
    shown,
)
from millpond.errors import (
    BatchEndedError,
    InvalidRequestError,
    UnknownBatchError,
    UnknownFileError,
)
from millpond.queue.scripts import Arg, Scripts, raising_unavailable

# A turn that is not renewed for this long is over: its process was killed, or stopped for a while.
LEASE_S = 3.0
# How long a batch that has ended can be looked at.
RECORD_TTL_S = 30 * 86_400


class Batches:
    """All methods raise QueueUnavailableError when Redis cannot serve; those with a turn TurnOverError."""

    def __init__(self, redis: Redis, home: str) -> None:
        self.keys = BatchKeys(home)
        self._redis = redis
        self._scripts = Scripts(redis, self.keys, LUA)

    async def create(self, id: str, new: NewBatch) -> BatchRecord:
        """Raises UnknownFileError, and InvalidRequestError for a file of another purpose."""
        fields: dict[str, Arg | None] = {
            "endpoint": new.endpoint,
            "window": new.window,
            "metadata": None if new.metadata is None else orjson.dumps(new.metadata),
            "output_ttl_s": new.output_ttl_s,
            "tenant_limit": new.tenant_limit,
            "tenant_bytes": new.tenant_bytes,
            "webhook_url": new.webhook_url,
            "output_id": new_file_id(),
            "errors_id": new_file_id(),
        }
        given: list[Arg] = []
        for name, value in fields.items():
            given += [] if value is None else [name, value]
        answer = await self._scripts.run(
            "batch_create", id, new.tenant, new.input_file, round(new.window_s * 1000), *given
        )
        if answer == b"none":
            raise UnknownFileError("input_file_id", new.input_file)
        if answer == b"not_input":
            raise InvalidRequestError("input_file_id", f"its purpose is not {UPLOADED}")
        return await self.get(id, new.tenant)

    async def get(self, id: str, tenant: str, *, field: str = "batch_id") -> BatchRecord:
        """Raises UnknownBatchError, which names the field."""
        found = await self.find(id)
        if found is None or found.tenant != tenant:
            raise UnknownBatchError(field, id)
        return found

    async def find(self, id: str) -> BatchRecord | None:
        """Whosever it is."""
        with raising_unavailable():
            found: Any = await self._redis.hgetall(self.keys.of("batch", id))
        return read_record(id, found) if found else None

    async def page(self, tenant: str, *, after: str | None, limit: int) -> Page[BatchRecord]:
        """Batches of the tenant behind ``after``, the newest first. Raises UnknownBatchError."""
        listed = self.keys.of("batches", tenant)
        found: list[BatchRecord] = []
        with raising_unavailable():
            start = await place_after(self._redis, listed, after, newest_first=True)
            if start is None:
                raise UnknownBatchError("after", after or "")
            while len(found) <= limit:
                ids: Any = await self._redis.zrange(listed, start, start + limit, desc=True)
                async with self._redis.pipeline(transaction=False) as pipe:
                    for id in ids:
                        pipe.hgetall(self.keys.of("batch", id.decode()))
                    records = await pipe.execute()
                found += [
                    read_record(id.decode(), record)
                    for id, record in zip(ids, records, strict=True)
                    if record
                ]
                if len(ids) <= limit:
                    break
                start += limit + 1
        return Page(found[:limit], len(found) > limit)

    async def cancel(self, id: str, tenant: str) -> BatchRecord:
        """Raises UnknownBatchError and BatchEndedError."""
        answer = await self._scripts.run("batch_cancel", id, tenant)
        if answer is None:
            raise UnknownBatchError("batch_id", id)
        if answer != b"cancelling":
            raise BatchEndedError(id, answer.decode())
        return await self.get(id, tenant)

    async def unfinished(self) -> list[BatchRecord]:
        """Those of all tenants that have not ended."""
        return [record for _, record in await self._members("unfinished") if record is not None]

    async def untold(self) -> list[tuple[str, BatchRecord | None]]:
        """Those that have ended, and of which no webhook is owed yet; None: the record has expired."""
        return await self._members("untold")

    async def told(self, id: str) -> None:
        """Its webhooks are owed now."""
        await self._scripts.run("batch_told", id)

    async def _members(self, name: str) -> list[tuple[str, BatchRecord | None]]:
        with raising_unavailable():
            members: Any = await self._redis.smembers(self.keys[name])
        ids = sorted(id.decode() for id in members)
        return [(id, await self.find(id)) for id in ids]

    async def now_ms(self) -> int:
        with raising_unavailable():
            seconds, micros = await self._redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def take(self, id: str, after_turn: int) -> Turn | None:
        """The turn behind that one. None: the batch has ended, or others were or are faster."""
        kind, *taken = await self._scripts.run(
            "batch_take", id, after_turn, round(LEASE_S * 1000), os.urandom(6).hex()
        )
        if kind != b"taken":
            return None
        number, clean = taken
        return Turn(id, int(number), clean == b"1")

    async def renew(self, turn: Turn, *, cursor: int | None = None) -> RunningState:
        """Called before rows are submitted, too: those before the cursor may be in their queues then."""
        return await self._renew(turn, round(LEASE_S * 1000), cursor, clean=False)

    async def release(self, turn: Turn, *, clean: bool) -> None:
        """End the turn. ``clean``: every row before the cursor is in its queue."""
        await self._renew(turn, 0, None, clean=clean)

    async def _renew(
        self, turn: Turn, lease_ms: int, cursor: int | None, *, clean: bool
    ) -> RunningState:
        status, left_ms = await self._held(
            "batch_renew",
            *(turn.batch, turn.number, lease_ms),
            *("" if cursor is None else cursor, "1" if clean else "0"),
        )
        return RunningState(BatchStatus(status.decode()), int(left_ms) / 1000)

    async def start(
        self,
        turn: Turn,
        *,
        total: int,
        models: Sequence[str],
        queues: Sequence[str],
        objects: Sequence[tuple[str, int]],
    ) -> BatchStatus:
        """Its lines are good: ``objects`` hold the rows, each with the place of its first row."""
        status = await self._held(
            "batch_start",
            *(turn.batch, turn.number, total),
            *(orjson.dumps(list(models)), orjson.dumps(list(queues))),
            *(arg for pair in objects for arg in pair),
        )
        return BatchStatus(status.decode())

    async def rows(self, id: str) -> list[tuple[str, int]]:
        """The objects with the rows of a batch, each with the place of its first row."""
        with raising_unavailable():
            found: Any = await self._redis.lrange(self.keys.of("rows", id), 0, -1)
        pairs = [entry.decode().split(" ") for entry in found]
        return [(name, int(place)) for name, place in pairs]

    async def done(self, id: str) -> bytes:
        """The bitmap of the places that are done, the first in the highest bit."""
        with raising_unavailable():
            found: Any = await self._redis.get(self.keys.of("done", id))
        return found or b""

    async def record_part(
        self,
        turn: Turn,
        number: int,
        *,
        output: Part | None,
        errors: Part | None,
        places: Sequence[int],
        prompt_tokens: int,
        output_tokens: int,
    ) -> None:
        """``number`` counts the parts of a turn."""
        await self._held(
            "batch_part",
            *(turn.batch, turn.number, number, prompt_tokens, output_tokens),
            *_part(output),
            *_part(errors),
            *places,
        )

    async def close(self, turn: Turn, outcome: BatchStatus) -> None:
        """Every row has ended, or never will."""
        await self._held("batch_close", turn.batch, turn.number, outcome)

    async def end(
        self,
        turn: Turn,
        status: BatchStatus,
        *,
        file_ttl_s: float,
        problems: Sequence[BatchProblem] = (),
        output: Part | None = None,
        errors: Part | None = None,
    ) -> None:
        """``output`` and ``errors``, if given, replace the parts that the files have."""
        await self._held(
            "batch_end",
            *(turn.batch, turn.number, status, RECORD_TTL_S * 1000, round(file_ttl_s * 1000)),
            orjson.dumps([shown(problem) for problem in problems]) if problems else "",
            *_part(output)[:2],
            *_part(errors)[:2],
        )

    async def _held(self, script: str, *args: Arg) -> Any:
        answer = await self._scripts.run(script, *args)
        if answer is None:
            raise TurnOverError
        return answer


def _part(part: Part | None) -> list[Arg]:
    return ["", 0, 0] if part is None else [part.object_name, part.num_bytes, part.rows]
