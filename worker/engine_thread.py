"""The one thread that owns the engine. Everything else talks to it in turns."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import structlog

from worker.engines.base import (
    Capacity,
    Engine,
    EngineEvent,
    EngineInfo,
    EngineNotReadyError,
    GenerationRequest,
    Rejection,
)

T = TypeVar("T")

# An engine that cannot be built yet is tried again after this, doubling.
NOT_READY_DELAY_S = 0.5
NOT_READY_DELAY_MAX_S = 10.0

log = structlog.get_logger("millpond.worker")


@dataclass(frozen=True, slots=True)
class Turn:
    """The outcome of one turn, and the engine's state after it."""

    rejections: list[Rejection]
    events: list[EngineEvent]
    stepped_rows: int
    num_rows: int
    capacity: Capacity


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A call that the thread is executing."""

    loading: bool


class EngineThread:
    """Builds the engine in the thread that will use it; call `start` first and `close` last.

    ``call`` is the call under way, for the watchdog.
    """

    def __init__(self, build: Callable[[], Engine]) -> None:
        self._build = build
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._engine: Engine | None = None
        self.call: Call | None = None

    async def start(self) -> tuple[EngineInfo, Capacity]:
        """Load and warm up. Also after a broken turn, which leaves no engine behind."""
        return await self._run(self._load, Call(loading=True))

    async def start_when_ready(self, stopped: asyncio.Event) -> tuple[EngineInfo, Capacity] | None:
        """As `start`, but retried while something that the engine needs is missing. None: stopped
        first."""
        delay_s = NOT_READY_DELAY_S
        while not stopped.is_set():
            try:
                return await self.start()
            except EngineNotReadyError as error:
                log.warning("engine_not_ready", cause=str(error), again_s=delay_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), delay_s)
            delay_s = min(delay_s * 2, NOT_READY_DELAY_MAX_S)
        return None

    async def turn(
        self, groups: Sequence[Sequence[GenerationRequest]], cancelled: Sequence[str]
    ) -> Turn:
        """Admit groups, end rows, take one step. An exception means that the engine is broken."""
        return await self._run(lambda: self._turn(groups, cancelled), Call(loading=False))

    async def close(self, timeout_s: float) -> bool:
        """Free the engine. False: a turn did not return in time, and the thread was abandoned."""
        try:
            await asyncio.wait_for(self._run(self._unload, None), timeout_s)
        except TimeoutError:
            return False
        finally:
            self._executor.shutdown(wait=False)
        return True

    async def _run(self, work: Callable[[], T], call: Call | None) -> T:
        self.call = call
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        finally:
            self.call = None

    def _load(self) -> tuple[EngineInfo, Capacity]:
        self._unload()
        engine = self._build()
        engine.warm_up()
        self._engine = engine
        return engine.info, engine.capacity()

    def _unload(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _turn(
        self, groups: Sequence[Sequence[GenerationRequest]], cancelled: Sequence[str]
    ) -> Turn:
        engine = self._engine
        assert engine is not None, "turn() needs start()"
        rejections = [r for group in groups for r in engine.admit(group)]
        if cancelled:
            engine.cancel(cancelled)
        rows = engine.num_rows
        events = engine.step() if rows else []
        return Turn(rejections, events, rows, engine.num_rows, engine.capacity())
