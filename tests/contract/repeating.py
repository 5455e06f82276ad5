"""Every script call made twice, as a client does that was not answered, with the server's clock held.

The second call must leave every key as it is, and answer what the first one did or, for a few, that its
work has been done. The caller gets the second answer, unless that is such a one.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from millpond.queue.scripts import Arg, KeyNames, Scripts
from tests.contract.invariants import Snapshot

# More would take the suite too long.
MOST_KEYS = 40
# A worker that blocks beside the call takes it away.
TAKEN_BY_OTHERS = {"wake"}


def done_before(name: str, first: Any) -> Any:
    """What a script says to work that was done by the first call; most say the same again."""
    match name:
        case "complete" | "emit":
            return [b"known" if answer == b"stored" else answer for answer in first]
        case "fail":
            return {b"retry": b"lost", b"stored": b"known", b"buried": b"known"}.get(first, first)
        case "release" | "suspect" | "delivery_settle" | "endpoint_remove":
            return 0
        case "delivery_take":  # they are held
            return []
        case "reap":
            return [0, 0, 0, 0]
        case "file_remove":
            return b"none" if first == b"removed" else first
        case "claim":  # what was missing has been struck off
            return [*first[:-1], 0]
    return first


class Repeating:
    """Stands in for `Scripts`' two ways to run a script."""

    def __init__(self, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        self._redis = redis
        self._one_at_a_time = asyncio.Lock()
        self._patch = monkeypatch
        run = Scripts.run

        async def run_twice(scripts: Scripts, name: str, *args: Arg) -> Any:
            return await self._twice(scripts, name, lambda: run(scripts, name, *args))

        async def run_many_twice(
            scripts: Scripts, name: str, calls: Sequence[Sequence[Arg]], replicas: None = None
        ) -> list[Any]:
            assert replicas is None, "there are none here"
            return [await run_twice(scripts, name, *args) for args in calls]

        monkeypatch.setattr(Scripts, "run", run_twice)
        monkeypatch.setattr(Scripts, "run_many", run_many_twice)

    async def _twice(self, scripts: Scripts, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        async with self._one_at_a_time:
            now_s = time.time()
            with self._patch.context() as held:
                held.setattr(time, "time", lambda: now_s)
                first = await call()
                compared = await self._redis.dbsize() <= MOST_KEYS
                before = await self._keyspace(scripts._keys) if compared else {}
                second = await call()
                after = await self._keyspace(scripts._keys) if compared else {}
        assert after == before, f"{name} made again has changed something"
        expected = done_before(name, first)
        if name == "claim":  # what is left is counted anew, with what is not for this worker
            expected[1] = second[1]
        assert second == expected, f"{name} made again answers {second}, not {expected}"
        return first if expected != first else second

    async def _keyspace(self, keys: KeyNames) -> dict[str, Any]:
        shot = await Snapshot.take(self._redis, keys)
        return {
            key: (value, shot.ttls[key])
            for key, value in shot.raw.items()
            if key.rpartition(":")[2] not in TAKEN_BY_OTHERS
        }
