"""The worker: drain -> group -> admit -> step ... step -> commit.

One asyncio loop does all I/O; one thread owns the engine and takes one turn at a time. While a turn
runs, the Committer writes what the turns before it produced.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import structlog

from millpond.errors import QueueUnavailableError
from millpond.logs import outline
from millpond.messages.worker_rows import EndedRow, WorkerRows
from millpond.messages.worker_state import WorkerPhase, WorkerState
from millpond.models.presets import Preset
from millpond.models.tokenization import Tokenizer
from millpond.queue.job_queue import JobQueue
from millpond.tasks import end_tasks, first_of, keep_running
from worker.engine_thread import EngineThread
from worker.engines.base import Capacity, Engine, EngineInfo, Finished
from worker.handover import give_back_all, give_back_waiting
from worker.intake import Intake
from worker.jobs.job_table import JobTable
from worker.jobs.lease import LeaseKeeper
from worker.jobs.observer import JobObserver
from worker.jobs.preparation import Preparation
from worker.metrics import WorkerMetrics
from worker.rates import Rates
from worker.registry import Registry, worker_state
from worker.rows_feed import RowsFeed, rows_of
from worker.watchdog import EngineHungError, TurnTimes, Watchdog
from worker.window import WindowPolicy

log = structlog.get_logger("millpond.worker")

# An engine that breaks this often in a row is not worth building again.
MAX_ENGINE_FAILURES = 3
# A listener that failed starts again after this.
LISTEN_AGAIN_S = 0.25
# How often the watchdog looks at the engine, at least.
WATCH_EVERY_S = 1.0
# For storing what has ended and releasing the rest, on top of the grace time.
WIND_DOWN_S = 3.0


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    worker_id: str
    window: WindowPolicy
    group_padded_tokens: int = 4096
    heartbeat_s: float = 1.0
    grace_s: float = 20.0
    delta_interval_s: float = 0.05
    checkpoint_tokens: int = 32
    turn_limit_s: float = 30.0
    model_identity: str | None = None
    visible_devices: str | None = None


class EngineFailedError(Exception):
    """The engine broke `MAX_ENGINE_FAILURES` times in a row; the process should end."""


class Worker:
    """Owns the engine's lifecycle and the main loop; the `JobTable` owns the jobs."""

    def __init__(
        self,
        queue: JobQueue,
        build_engine: Callable[[], Engine],
        tokenizer: Tokenizer,
        preset: Preset,
        options: WorkerOptions,
        metrics: WorkerMetrics | None = None,
        observers: Sequence[JobObserver] = (),
    ) -> None:
        self._queue = queue
        self._tokenizer = tokenizer
        self._preset = preset
        self._options = options
        self._metrics = metrics or WorkerMetrics(queue.keys.queue, preset.name)
        self._engine = EngineThread(build_engine)
        self._num_ended = 0
        self._engine_failures = 0
        self._broken = False  # the engine broke and was not built again, for we are to stop
        self._background_error: BaseException | None = None
        self._stopping = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._phase = WorkerPhase.LOADING
        self._rates = Rates(time.monotonic())
        self._feed = RowsFeed(queue.watch, self._rows_now)
        self._jobs = JobTable(
            queue,
            tokenizer,
            preset,
            worker_id=options.worker_id,
            group_padded_tokens=options.group_padded_tokens,
            delta_interval_s=options.delta_interval_s,
            checkpoint_tokens=options.checkpoint_tokens,
            engine_info=lambda: self._info,
            rates=self._rates,
            observers=[self._metrics, self._feed, *observers],
        )
        self._leases = LeaseKeeper(queue, self._jobs, options.heartbeat_s)
        self._turn_times = TurnTimes(options.turn_limit_s)
        self._watchdog = Watchdog(
            self._engine,
            self._turn_times,
            lambda: self._jobs.prompt_tokens,
            tick_s=min(WATCH_EVERY_S, options.turn_limit_s / 10),
        )
        self._registry = Registry(
            queue, options.worker_id, options.heartbeat_s, self._worker_state, self._feed
        )
        # What the engine is, and its capacity when it runs nothing; None until it was loaded once.
        self._loaded: tuple[EngineInfo, Capacity] | None = None
        self._intake: Intake | None = None

    @property
    def ready(self) -> bool:
        """Whether the engine is loaded and warm and the worker takes jobs."""
        return self._phase is WorkerPhase.READY

    @property
    def _info(self) -> EngineInfo:
        assert self._loaded is not None
        return self._loaded[0]

    @property
    def _full(self) -> Capacity:
        assert self._loaded is not None
        return self._loaded[1]

    def stop(self) -> None:
        """First call: claim no more, finish what fits in the grace time. Second: release at once."""
        if self._stopping.is_set():
            self._stop_now.set()
        self._stopping.set()
        if self._intake is not None:
            self._intake.close()

    async def run(self) -> bool:
        """Work until `stop`. False: the engine's thread does not return, so the process must exit hard.

        Raises EngineFailedError, whatever building the engine raises, and what ended a background
        task: a worker that cannot write or renew must not hold on to its jobs.
        """
        background = [
            asyncio.create_task(self._jobs.committer.run(), name="committer"),
            asyncio.create_task(self._leases.run(), name="leases"),
            asyncio.create_task(self._registry.run(), name="registry"),
            asyncio.create_task(self._feed.run(), name="rows"),
            asyncio.create_task(self._watchdog.run(), name="watchdog"),
        ]
        work = asyncio.create_task(self._work(), name="work")
        for task in background:
            task.add_done_callback(functools.partial(self._on_background_end, work))
        try:
            await self._until_done_or_out_of_grace(work)
        except asyncio.CancelledError as error:
            if self._background_error is None:
                raise
            if not self._hung:
                raise self._background_error from error
        finally:
            await end_tasks(work)
            clean = await self._wind_down(background)
        return clean

    @property
    def _hung(self) -> bool:
        return isinstance(self._background_error, EngineHungError)

    def _on_background_end(self, work: asyncio.Task[None], ended: asyncio.Task[None]) -> None:
        if not ended.cancelled() and (error := ended.exception()) is not None:
            if isinstance(error, EngineHungError):
                log.error("engine_hangs", cause=str(error), rows=self._jobs.num_rows)
            else:
                log.error("background_task_failed", task=ended.get_name(), **outline(error))
            self._background_error = error
            work.cancel()

    async def _work(self) -> None:
        if not await self._load_engine():
            return
        intake = self._open_intake()
        listener = asyncio.create_task(
            keep_running("listener", intake.listen, LISTEN_AGAIN_S), name="listener"
        )
        try:
            self._phase = WorkerPhase.READY
            await self._registry.beat()
            log.info("ready", worker=self._options.worker_id, **asdict(self._info))
            while not self._stopping.is_set():
                await self._drain()
                await self._take_turn()
        finally:
            await end_tasks(listener)
        self._phase = WorkerPhase.DRAINING
        with contextlib.suppress(QueueUnavailableError):  # then `_wind_down` tries again
            await give_back_waiting(self._queue, self._jobs, intake)
        while self._jobs.busy and not self._broken:
            await self._take_turn()

    async def _until_done_or_out_of_grace(self, work: asyncio.Task[None]) -> None:
        await first_of(work, self._stopping.wait())
        if not work.done():
            await first_of(work, self._stop_now.wait(), timeout_s=self._options.grace_s)
        if work.done():
            work.result()

    async def _load_engine(self) -> bool:
        """False: stopped before it was loaded."""
        loaded = await self._engine.start_when_ready(self._stopping)
        if loaded is not None:
            self._loaded = loaded
            self._capacity = self._full
        return loaded is not None

    def _open_intake(self) -> Intake:
        self._intake = Intake(
            self._queue,
            Preparation(self._preset, self._tokenizer, self._full.free_slots),
            self._jobs,
            worker_id=self._options.worker_id,
            policy=self._options.window,
            full=self._full,
            row_tokens=min(self._info.context_tokens, self._full.free_tokens),
        )
        return self._intake

    # -- drain and admit

    async def _drain(self) -> None:
        """Claim jobs for the free slots: a window if nothing runs, else whatever is queued now."""
        assert self._intake is not None
        if self._jobs.busy:
            await self._intake.refill(self._jobs.room(self._capacity))
        else:
            await self._intake.next_window()

    # -- step and commit

    async def _take_turn(self) -> None:
        if not self._jobs.busy:
            return
        requests, cancels = self._jobs.next_turn(self._capacity)
        assert self._intake is not None
        self._intake.look_ahead(self._num_ended)
        began_s = time.monotonic()
        try:
            turn = await self._engine.turn(requests, cancels)
        except Exception as error:
            log.error("engine_broke", rows=self._jobs.num_rows, **outline(error))
            await self._recover(error)
            return
        self._engine_failures = 0
        self._capacity = turn.capacity
        ended = [event for event in turn.events if isinstance(event, Finished)]
        self._num_ended = len(ended)
        for end in ended:
            self._metrics.ended(end.stats)
        self._rates.stepped(turn.stepped_rows, self._info.slots)
        self._metrics.stepped(turn.stepped_rows)
        read_tokens = self._jobs.take_in(turn)
        self._turn_times.ended(time.monotonic() - began_s, read_tokens)

    async def _recover(self, error: Exception) -> None:
        """The engine and all its rows are gone: return the jobs as suspects and rebuild it."""
        self._engine_failures += 1
        # Not its text: that may hold one tenant's prompt, and this goes into everybody's results.
        message = f"the engine broke: {type(error).__name__}"
        with contextlib.suppress(QueueUnavailableError):
            await self._jobs.give_up_rows(message)
        if self._engine_failures >= MAX_ENGINE_FAILURES:
            raise EngineFailedError(message) from error
        self._phase = WorkerPhase.LOADING
        self._broken = not await self._load_engine()
        if not self._broken:
            self._phase = WorkerPhase.READY

    # -- stop

    async def _wind_down(self, background: list[asyncio.Task[None]]) -> bool:
        """Store what has ended, release the rest unspent, sign off, free the engine."""
        if self._hung:
            await self._leave_hung_engine(background)
            return False
        with contextlib.suppress(QueueUnavailableError, TimeoutError):
            async with asyncio.timeout(WIND_DOWN_S):
                await self._jobs.committer.settled()
                released = await give_back_all(self._queue, self._jobs, self._intake)
                await self._registry.sign_off()
                log.info("stopped", worker=self._options.worker_id, released=released)
        await end_tasks(*background)
        return await self._engine.close(WIND_DOWN_S)

    async def _leave_hung_engine(self, background: list[asyncio.Task[None]]) -> None:
        """Report it, return its rows as suspects and release the rest. No lease is renewed any more.

        The entry in the registry stays, to be read until it is forgotten.
        """
        self._phase = WorkerPhase.HUNG
        await end_tasks(*(task for task in background if task.get_name() == "leases"))
        with contextlib.suppress(QueueUnavailableError, TimeoutError):
            async with asyncio.timeout(WIND_DOWN_S):
                await self._registry.beat()
                await self._jobs.give_up_rows("the engine hung")
                released = await give_back_all(self._queue, self._jobs, self._intake)
                log.info("gave_up", worker=self._options.worker_id, released=released)
        await end_tasks(*background)

    def _worker_state(self) -> WorkerState:
        return worker_state(
            self._phase,
            self._preset.name,
            self._options.model_identity,
            None if self._phase is WorkerPhase.LOADING else self._loaded,
            self._options.window,
            visible_devices=self._options.visible_devices,
            rows=self._jobs.num_rows,
            in_flight=len(self._jobs.in_flight),
            rates=self._rates.snapshot(time.monotonic()),
        )

    def _rows_now(self, ended: list[EndedRow]) -> WorkerRows:
        return WorkerRows(
            worker=self._options.worker_id,
            slots=0 if self._loaded is None else self._info.slots,
            waiting=self._jobs.num_waiting,
            jobs_total=self._rates.jobs_total,
            rows=rows_of(self._jobs.in_flight),
            ended=ended,
        )
