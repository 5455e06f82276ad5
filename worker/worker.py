"""The worker: drain -> group -> admit -> step ... step -> commit.

One asyncio loop does all I/O; one thread owns the engine and takes one turn at a time. While a turn
runs, the Committer writes what the turns before it produced.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import structlog

from millpond.errors import QueueUnavailableError
from millpond.logs import outline
from millpond.messages import JobResult
from millpond.presets import Preset
from millpond.queue import JobQueue
from millpond.tasks import end_tasks
from millpond.tokenization import Tokenizer
from worker.admission import Admission
from worker.committer import Committer, Ending
from worker.engine_thread import EngineThread, Turn
from worker.engines.base import (
    Engine,
    EngineInfo,
    EngineNotReadyError,
    Finished,
    GenerationRequest,
    RejectionCode,
)
from worker.held import HeldChoice, HeldJob, failure, never_run
from worker.intake import Intake, Window, less
from worker.lease import LeaseKeeper
from worker.rates import Rates
from worker.registry import Registry, registry_entry
from worker.window import WindowPolicy

log = structlog.get_logger("millpond.worker")

# An engine that breaks this often in a row is not worth building again.
MAX_ENGINE_FAILURES = 3
# An engine that cannot be built yet is tried again after this, doubling.
NOT_READY_DELAY_S = 0.5
NOT_READY_DELAY_MAX_S = 10.0
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


class EngineFailedError(Exception):
    """The engine broke `MAX_ENGINE_FAILURES` times in a row; the process should end."""


class Worker:
    """Owns the table of held jobs: every claimed job is in it until its last word is stored."""

    def __init__(
        self,
        queue: JobQueue,
        build_engine: Callable[[], Engine],
        tokenizer: Tokenizer,
        preset: Preset,
        options: WorkerOptions,
    ) -> None:
        self._queue = queue
        self._tokenizer = tokenizer
        self._preset = preset
        self._options = options
        self._engine = EngineThread(build_engine)
        self._held: dict[str, HeldJob] = {}
        self._admission = Admission()
        self._ending: list[str] = []
        self._num_rows = 0
        self._num_ended = 0
        self._engine_failures = 0
        self._background_error: BaseException | None = None
        self._stopping = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._state = "loading"
        self._rates = Rates(time.monotonic())
        self._committer = Committer(queue, self._on_committed, options.delta_interval_s)
        self._leases = LeaseKeeper(queue, self._held, self._ending.extend, options.heartbeat_s)
        self._registry = Registry(
            queue, options.worker_id, options.heartbeat_s, self._registry_entry
        )
        self._info: EngineInfo
        self._intake: Intake | None = None

    @property
    def ready(self) -> bool:
        """Whether the engine is loaded and warm and the worker takes jobs."""
        return self._state == "ready"

    def stop(self) -> None:
        """First call: claim no more, finish what fits in the grace time. Second: release at once."""
        if self._stopping.is_set():
            self._stop_now.set()
        self._stopping.set()
        if self._intake is not None:
            self._intake.close()

    async def run(self) -> bool:
        """Work until `stop`. False: the engine's thread hangs in a turn, so end the process hard.

        Raises EngineFailedError, whatever building the engine raises, and what ended a background
        task: a worker that cannot write or renew must not hold on to its jobs.
        """
        background = [
            asyncio.create_task(self._committer.run(), name="committer"),
            asyncio.create_task(self._leases.run(), name="leases"),
            asyncio.create_task(self._registry.run(), name="registry"),
        ]
        work = asyncio.create_task(self._work(), name="work")
        for task in background:
            task.add_done_callback(functools.partial(self._on_background_end, work))
        try:
            await self._until_done_or_out_of_grace(work)
        except asyncio.CancelledError as error:
            if self._background_error is not None:
                raise self._background_error from error
            raise
        finally:
            await end_tasks(work)
            clean = await self._wind_down(background)
        return clean

    def _on_background_end(self, work: asyncio.Task[None], ended: asyncio.Task[None]) -> None:
        if not ended.cancelled() and (error := ended.exception()) is not None:
            log.error("background_task_failed", task=ended.get_name(), **outline(error))
            self._background_error = error
            work.cancel()

    async def _work(self) -> None:
        if not await self._load_engine():
            return
        intake = self._open_intake()
        listener = asyncio.create_task(intake.listen(), name="intake")
        try:
            self._state = "ready"
            await self._registry.beat()
            log.info("ready", worker=self._options.worker_id, **asdict(self._info))
            while not self._stopping.is_set():
                await self._drain()
                await self._take_turn()
        finally:
            await end_tasks(listener)
        self._state = "draining"
        await self._put_down(await intake.put_down())
        while self._busy:
            await self._take_turn()

    async def _until_done_or_out_of_grace(self, work: asyncio.Task[None]) -> None:
        await _first(work, self._stopping.wait())
        if not work.done():
            await _first(work, self._stop_now.wait(), timeout_s=self._options.grace_s)
        if work.done():
            work.result()

    async def _load_engine(self) -> bool:
        """Build the engine, as often as what it needs is not there yet. False: stopped before."""
        delay_s = NOT_READY_DELAY_S
        while not self._stopping.is_set():
            try:
                self._info, self._capacity = await self._engine.start()
            except EngineNotReadyError as error:
                log.warning("engine_not_ready", cause=str(error), again_s=delay_s)
            else:
                return True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)
            delay_s = min(delay_s * 2, NOT_READY_DELAY_MAX_S)
        return False

    def _open_intake(self) -> Intake:
        self._intake = Intake(
            self._queue,
            self._tokenizer,
            self._preset,
            worker_id=self._options.worker_id,
            policy=self._options.window,
            group_padded_tokens=self._options.group_padded_tokens,
            full=self._capacity,
            hold=self._hold,
        )
        return self._intake

    # -- drain and admit

    async def _drain(self) -> None:
        """Get jobs for the free slots: a window if nothing runs, else what is there right now."""
        assert self._intake is not None
        if self._busy:
            left = less(self._capacity, self._admission.jobs)
            window = await self._intake.refill(left)
        else:
            window = await self._intake.next_window()
        if window is not None:
            self._accept(window)

    def _hold(self, jobs: Iterable[HeldJob]) -> None:
        self._held.update((job.row, job) for job in jobs)

    def _accept(self, window: Window) -> None:
        sizes = [len(group) for group in window.groups]
        log.debug("window", groups=sizes, refused=len(window.refused))
        self._admission.add(window.groups)
        self._refuse(window)

    def _refuse(self, window: Window) -> None:
        for claimed, result in window.refused:
            self._committer.add_ending(Ending(claimed, result))

    async def _put_down(self, window: Window) -> None:
        """Give back what was claimed ahead, so that another worker need not wait for its turn."""
        self._refuse(window)
        jobs = [job for group in window.groups for job in group if not job.lost]
        with contextlib.suppress(QueueUnavailableError):  # then `_wind_down` tries again
            await self._queue.release([(job.id, job.claimed.fence) for job in jobs])
            for job in jobs:
                del self._held[job.row]

    @property
    def _busy(self) -> bool:
        return self._num_rows > 0 or bool(self._admission)

    # -- step and commit

    async def _take_turn(self) -> None:
        if not self._busy:
            return
        requests = self._requests()
        assert self._intake is not None
        self._intake.look_ahead(self._num_ended)
        ending = [c.row for row in self._ending if (j := self._held.get(row)) for c in j.choices]
        self._ending.clear()
        try:
            turn = await self._engine.turn(requests, ending)
        except Exception as error:
            log.error("engine_broke", rows=self._num_rows, **outline(error))
            await self._recover(error)
            return
        self._engine_failures = 0
        self._num_rows, self._capacity = turn.num_rows, turn.capacity
        self._num_ended = sum(isinstance(event, Finished) for event in turn.events)
        self._rates.stepped(turn.stepped_rows, self._info.slots)
        self._commit(turn)

    def _requests(self) -> list[list[GenerationRequest]]:
        """The groups to admit, less the jobs that are to end before they became rows."""
        for choice in self._admission.take_over():
            self._finish(choice, never_run(choice))
        requests = []
        for group in self._admission.take(self._capacity.free_slots):
            requests.append([r for job in group for r in job.generation_requests(self._preset)])
            for choice in [choice for job in group for choice in job.waiting]:
                choice.admitted = True
        return requests

    def _commit(self, turn: Turn) -> None:
        now_s = time.monotonic()
        no_room: dict[str, HeldJob] = {}
        for rejection in turn.rejections:
            choice = self._choice(rejection.id)
            choice.admitted = False
            if rejection.code is RejectionCode.NO_CAPACITY:
                no_room[choice.job.row] = choice.job  # there will be when rows have ended
                continue
            choice.job.rejection = rejection
            self._finish(choice, never_run(choice))
        self._admission.add([job] for job in no_room.values())
        for event in turn.events:
            choice = self._choice(event.id)
            job = choice.job
            if job.first_token_s is None and (event.token_ids or event.text):
                job.first_token_s = now_s
            if isinstance(event, Finished):
                self._finish(choice, event)
                if job.done:
                    self._rates.job_ended(
                        now_s,
                        len(job.prompt.token_ids),
                        sum(end.completion_tokens for end in job.ends),
                        event.stats.padding_share,
                    )
            elif not job.lost:
                self._committer.add_text(choice, event.text)

    def _choice(self, row: str) -> HeldChoice:
        """That of an engine's row, see `HeldChoice.row`."""
        job_row, _, index = row.rpartition("/")
        return self._held[job_row].choices[int(index)]

    def _finish(self, choice: HeldChoice, finished: Finished) -> None:
        choice.finished = finished
        job = choice.job
        if not job.done:
            return
        if job.lost:
            del self._held[job.row]
        else:
            worker_id = self._options.worker_id
            self._end(job, job.result(worker_id, self._info, self._tokenizer))

    def _end(self, job: HeldJob, result: JobResult) -> None:
        job.ended = True
        self._committer.add_ending(Ending(job.claimed, result))

    def _on_committed(self, ending: Ending) -> None:
        self._held.pop(ending.claimed.row, None)

    async def _recover(self, error: Exception) -> None:
        """The engine and all its rows are gone: give the jobs back as suspects, build it anew."""
        self._engine_failures += 1
        self._num_rows = 0
        # Not its text: that may hold one tenant's prompt, and this goes into everybody's results.
        message = f"the engine broke: {type(error).__name__}"
        await self._committer.settled()
        rows = [job for job in self._held.values() if job.admitted]
        running = [
            (job.claimed.fence, failure(job.claimed, "engine_failed", message, job.request))
            for job in rows
            if not job.lost
        ]
        with contextlib.suppress(QueueUnavailableError):  # then the end of the leases does the same
            await self._queue.suspect(running)
        self._admission.drop(rows)  # those of which only some rows had room
        for job in rows:
            del self._held[job.row]
        if self._engine_failures >= MAX_ENGINE_FAILURES:
            raise EngineFailedError(message) from error
        self._state = "loading"
        if await self._load_engine():
            self._state = "ready"

    # -- stop

    async def _wind_down(self, background: list[asyncio.Task[None]]) -> bool:
        """Store what has ended, release the rest unspent, sign off, free the engine."""
        with contextlib.suppress(QueueUnavailableError, TimeoutError):
            async with asyncio.timeout(WIND_DOWN_S):
                await self._committer.settled()
                released = await self._release_all()
                await self._registry.sign_off()
                log.info("stopped", worker=self._options.worker_id, released=released)
        await end_tasks(*background)
        return await self._engine.close(WIND_DOWN_S)

    async def _release_all(self) -> int:
        """Give everything back; what was claimed unheard last, since that takes another claim."""
        if self._intake is not None:
            self._intake.break_off()
        held = [(job.id, job.claimed.fence) for job in self._held.values() if not job.lost]
        released = await self._queue.release(held)
        if self._intake is not None:
            unheard = [(job.id, job.fence) for job in await self._intake.unheard()]
            released += await self._queue.release(unheard)
        return released

    def _registry_entry(self) -> dict[str, Any]:
        info = None if self._state == "loading" else self._info
        return registry_entry(
            self._state,
            self._preset.name,
            info,
            self._options.window,
            rows=self._num_rows,
            held=len(self._held),
            rates=self._rates.snapshot(time.monotonic()),
        )


async def _first(
    work: asyncio.Task[None], other: Coroutine[Any, Any, Any], timeout_s: float | None = None
) -> None:
    """Wait for whichever ends first; ``work`` goes on if it is not the one."""
    event = asyncio.ensure_future(other)
    await asyncio.wait({work, event}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    event.cancel()
