"""What the worker tells of itself, once a heartbeat; readers learn from it what is served."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from millpond.errors import QueueUnavailableError
from millpond.queue import JobQueue
from worker.engines.base import EngineInfo
from worker.window import WindowPolicy


class Registry:
    """Keeps the worker's entry fresh, and sweeps the queue while it is at it."""

    def __init__(
        self,
        queue: JobQueue,
        worker_id: str,
        heartbeat_s: float,
        entry: Callable[[], dict[str, Any]],
    ) -> None:
        self._queue = queue
        self._worker_id = worker_id
        self._heartbeat_s = heartbeat_s
        self._entry = entry

    async def run(self) -> None:
        while True:
            await self.beat()
            await asyncio.sleep(self._heartbeat_s)

    async def beat(self) -> None:
        with contextlib.suppress(QueueUnavailableError):
            await self._queue.beat(self._worker_id, self._entry())
            await self._queue.reap()

    async def sign_off(self) -> None:
        """Raises QueueUnavailableError."""
        await self._queue.beat(self._worker_id, None)


def registry_entry(
    state: str,
    model: str,
    info: EngineInfo | None,
    window: WindowPolicy,
    *,
    rows: int,
    held: int,
    rates: Mapping[str, float | int],
) -> dict[str, Any]:
    """The entry as `docs/protocol.md` describes it; without ``info`` while the engine loads."""
    entry: dict[str, Any] = {
        "state": state,
        "model": model,
        "rows": rows,
        "held": held,
        "window": {
            "close_jobs": window.close_jobs,
            "max_jobs": window.max_jobs,
            "max_wait_ms": None if window.max_wait_s is None else window.max_wait_s * 1000,
        },
        **rates,
    }
    if info is not None:
        entry |= {
            "engine": info.engine,
            "dtype": info.dtype,
            "device": info.device,
            "slots": info.slots,
            "context_tokens": info.context_tokens,
        }
    return entry
