"""The worker's registry entry, written once a heartbeat; readers learn from it what is served."""

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from millpond.errors import QueueUnavailableError
from millpond.messages.worker_state import WorkerPhase, WorkerRates, WorkerState, WorkerWindow
from millpond.queue.job_queue import JobQueue
from worker.engines.base import Capacity, EngineInfo
from worker.rows_feed import RowsFeed
from worker.window import WindowPolicy

log = structlog.get_logger("millpond.registry")


class Registry:
    """Keeps the worker's entry up to date, and sweeps the queue at the same time."""

    def __init__(
        self,
        queue: JobQueue,
        worker_id: str,
        heartbeat_s: float,
        state: Callable[[], WorkerState],
        feed: RowsFeed,
    ) -> None:
        self._queue = queue
        self._feed = feed
        self._worker_id = worker_id
        self._heartbeat_s = heartbeat_s
        self._state = state

    async def run(self) -> None:
        while True:
            await self.beat()
            await asyncio.sleep(self._heartbeat_s)

    async def beat(self) -> None:
        with contextlib.suppress(QueueUnavailableError):
            self._feed.told(watched=await self._queue.beat(self._worker_id, self._state()))
            swept = await self._queue.reap()
            if swept.missing:
                log.warning("jobs_missing", number=swept.missing)

    async def sign_off(self) -> None:
        """Raises QueueUnavailableError."""
        await self._queue.beat(self._worker_id, None)


def worker_state(
    phase: WorkerPhase,
    model: str,
    model_identity: str | None,
    engine: tuple[EngineInfo, Capacity] | None,
    window: WindowPolicy,
    *,
    visible_devices: str | None,
    rows: int,
    in_flight: int,
    rates: WorkerRates,
) -> WorkerState:
    """``engine``: what it is, and its capacity when it runs nothing; None while it loads."""
    info, full = (None, None) if engine is None else engine
    return WorkerState(
        state=phase,
        model=model,
        model_identity=model_identity,
        engine=info and info.engine,
        backend=info and info.backend,
        dtype=info and info.dtype,
        device=info and info.device,
        visible_devices=visible_devices,
        slots=info and info.slots,
        capacity_tokens=full and full.free_tokens,
        context_tokens=info and info.context_tokens,
        rows=rows,
        in_flight=in_flight,
        window=WorkerWindow(
            close_jobs=window.close_jobs,
            max_jobs=window.max_jobs,
            max_wait_ms=None if window.max_wait_s is None else window.max_wait_s * 1000,
        ),
        **rates.model_dump(),
    )
