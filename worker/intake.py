"""From the queue to jobs that are ready for the engine: hold a window open, claim it, tokenize it.

All of that goes on beside the engine's turns. Under a backlog a few jobs are claimed and tokenized
while a turn runs, so that the slots which it frees are filled without a round trip.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence

import structlog

from millpond.errors import QueueUnavailableError
from millpond.messages import JobResult
from millpond.queue.claims import Claim, ClaimedJob, new_nonce
from millpond.queue.job_queue import JobQueue
from millpond.tasks import end_tasks, first_of
from worker.engines.base import Capacity
from worker.jobs.in_flight import InFlightJob
from worker.jobs.job_table import JobTable
from worker.jobs.preparation import Preparation
from worker.window import WindowPolicy, decide

log = structlog.get_logger("millpond.intake")

# Wake-ups are a hint: a worker with room looks for itself at least this often.
IDLE_LOOK_S = 1.0
REDIS_RETRY_S = 0.25
# A worker that drains for suspects says so again this often, which is within every sound lease.
DRAIN_LOOK_S = 0.25
# So long one turn waits for a claim that is under way: for a round trip, not for a server that hangs
# or for long prompts.
REFILL_PATIENCE_S = 0.02
# Jobs claimed ahead: at most one for so many slots, and no more than lately ended in so many turns.
# A job held back here while another worker idles would wait for nothing.
SLOTS_FOR_EACH_AHEAD = 16
RECENT_TURNS = 8
# Jobs with more stored bytes than this are read and tokenized off the event loop, so many at once.
INLINE_BYTES = 16_384
PORTION_BYTES = 262_144


class Intake:
    """Claimed jobs go to the table at once, and get their prompts or their refusals there.

    ``full`` is the capacity of the engine when it runs nothing, ``row_tokens`` the most that one row may
    have. One claim at a time is under way, from
    the call of the script until the last of its jobs is tokenized.
    """

    def __init__(
        self,
        queue: JobQueue,
        preparation: Preparation,
        jobs: JobTable,
        *,
        worker_id: str,
        policy: WindowPolicy,
        full: Capacity,
        row_tokens: int,
    ) -> None:
        self._queue = queue
        self._preparation = preparation
        self._jobs = jobs
        self._worker_id = worker_id
        self._policy = policy
        self._full = full
        self._row_tokens = row_tokens
        self._work = asyncio.Event()  # something may be queued
        self._wanted = asyncio.Event()  # this worker could take it
        self._arrived = asyncio.Event()  # a job is ready for the engine, or refused
        self._closed = False
        self._alone = False  # what was claimed last is to run with nothing beside it
        self._drains_until_s = 0.0  # until then nothing is to be claimed but by an idle worker
        self._fruitless = False  # the last claim gave nothing, and said that there is no more
        self._underway: str | None = None  # the nonce of a claim whose jobs are not here yet
        self._claiming: asyncio.Task[None] | None = None
        self._waited = False  # a turn has waited for it
        self._recently_ended: deque[int] = deque(maxlen=RECENT_TURNS)

    async def listen(self) -> None:
        """Listen for wake-ups while this worker can take more jobs. Run as a task."""
        while True:
            await self._wanted.wait()
            try:
                woken = await self._queue.wait_for_work(IDLE_LOOK_S)
                if self._wanted.is_set():
                    self._work.set()
                elif woken:
                    await self._queue.wake_another()
            except QueueUnavailableError:
                await asyncio.sleep(REDIS_RETRY_S)

    def close(self) -> None:
        """Claim no more: `next_window` returns now."""
        self._closed = True
        self._work.set()
        self._arrived.set()

    async def next_window(self) -> None:
        """For an idle worker: wait until a window closes, claim it, return when a job is ready."""
        self._wanted.set()
        opened_s: float | None = None
        while not self._closed and not self._jobs.busy:
            if self._is_claiming():
                await self._first_arrival()
                continue
            if self._fruitless:  # what is queued is for others, or for later
                self._fruitless = False
                await self._woken(IDLE_LOOK_S)
                continue
            try:
                # Cleared before looking: what is queued after the look sets it again.
                self._work.clear()
                waiting = await self._queue.waiting()
            except QueueUnavailableError as error:
                log.warning("queue_away", error=str(error))
                await asyncio.sleep(REDIS_RETRY_S)
                continue
            now_s = time.monotonic()
            opened_s = None if waiting == 0 else opened_s or now_s
            decision = decide(
                self._policy,
                waiting=waiting,
                waited_s=now_s - (opened_s or now_s),
                free_slots=self._full.free_slots,
            )
            if decision.take or self._underway is not None:
                self._start_claim(decision.take, self._full)
                opened_s = None
                continue
            await self._woken(IDLE_LOOK_S if decision.wait_s is None else decision.wait_s)

    async def refill(self, room: Capacity) -> None:
        """For a busy worker: claim what waits for its free slots, without waiting for more.

        ``room`` is beside what is ready already. Returns when what is claimed is ready, or soon.
        """
        if room.free_slots < 1 or self._shut:
            self._wanted.clear()
            return
        self._wanted.set()
        if not self._is_claiming() and self._work.is_set() and room.free_tokens > 0:
            self._start_claim(min(self._policy.max_jobs, room.free_slots), room)
        if self._claiming is not None and not self._waited:
            self._waited = True
            await asyncio.wait({self._claiming}, timeout=REFILL_PATIENCE_S)

    def look_ahead(self, num_ended: int) -> None:
        """Claim for the slots that the coming turn will free, if there is a backlog.

        ``num_ended`` rows ended in the turn before.
        """
        self._recently_ended.append(num_ended)
        wanted = min(self._full.free_slots // SLOTS_FOR_EACH_AHEAD, sum(self._recently_ended))
        slots = max(0, wanted - self._jobs.num_waiting)
        if self._is_claiming() or self._shut or not self._work.is_set():
            return
        if slots < 1 and self._underway is None:
            return
        # Their share of the worker; suspects only come to one that has room for everything.
        tokens = self._full.free_tokens * slots // self._full.free_slots
        self._start_claim(slots, Capacity(slots, tokens))

    async def break_off(self) -> None:
        """Abandon the claim under way. `unheard` returns what it claimed; the table has what is not
        ready yet."""
        await end_tasks(self._claiming)

    async def unheard(self) -> list[ClaimedJob]:
        """Jobs that were claimed but whose answer was lost, to be released. Raises
        QueueUnavailableError."""
        if self._underway is None:
            return []
        return (await self._ask(0, self._full)).jobs

    def forget_unheard(self) -> None:
        """It has been released."""
        self._underway = None

    @property
    def _shut(self) -> bool:
        """Whether a busy worker is to take nothing beside what runs."""
        return self._alone or time.monotonic() < self._drains_until_s

    def _is_claiming(self) -> bool:
        """Raises the last claim's exception, if it was unexpected."""
        if self._claiming is not None and self._claiming.done():
            claimed, self._claiming = self._claiming, None
            if not claimed.cancelled():  # as it is when the claim was broken off
                claimed.result()
        return self._claiming is not None

    async def _woken(self, timeout_s: float) -> None:
        """Wait until something may be queued, or the time is up."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._work.wait(), timeout_s)

    async def _first_arrival(self) -> None:
        """Wait until the claim under way has made a job ready, or has ended."""
        assert self._claiming is not None
        self._arrived.clear()
        await first_of(self._claiming, self._arrived.wait())

    def _start_claim(self, count: int, capacity: Capacity) -> None:
        if not self._closed:
            self._work.clear()
            self._waited = False
            self._claiming = asyncio.create_task(self._claim(count, capacity), name="claim")

    async def _claim(self, count: int, capacity: Capacity) -> None:
        try:
            claim = await self._ask(count, capacity)
        except QueueUnavailableError as error:
            log.warning("claim_failed", error=str(error))
            await asyncio.sleep(REDIS_RETRY_S)
            self._work.set()
            return
        if claim.missing:
            log.warning("jobs_missing", number=claim.missing)
        jobs = self._jobs.claim(claim.jobs)
        self._underway = None
        self._alone = claim.alone
        self._drains_until_s = time.monotonic() + DRAIN_LOOK_S if claim.draining else 0.0
        if self._shut:
            self._wanted.clear()
        self._fruitless = not claim.jobs and not claim.left
        if claim.left or claim.draining:
            self._work.set()
        for portion, num_bytes in _portions(jobs):
            claimed = [job.claimed for job in portion]
            if num_bytes > INLINE_BYTES or self._preparation.may_be_slow(claimed):
                prepared = await asyncio.to_thread(self._preparation.prepare_all, claimed)
            else:
                prepared = self._preparation.prepare_all(claimed)
            for job, outcome in zip(portion, prepared, strict=True):
                if isinstance(outcome, JobResult):
                    self._jobs.refuse(job, outcome)
                else:
                    self._jobs.prepare(job, *outcome)
            self._arrived.set()

    async def _ask(self, count: int, capacity: Capacity) -> Claim:
        """Claim under one nonce until its answer arrives: a lost one is given again."""
        self._underway = self._underway or new_nonce()
        return await self._queue.claim(
            self._worker_id,
            count,
            budget_tokens=capacity.free_tokens,
            capacity_tokens=self._full.free_tokens,
            slots=self._full.free_slots,
            row_tokens=self._row_tokens,
            nonce=self._underway,
        )


def _portions(jobs: Sequence[InFlightJob]) -> Iterator[tuple[list[InFlightJob], int]]:
    """Cut where `PORTION_BYTES` are reached, so that the first need not wait for the last."""
    portion: list[InFlightJob] = []
    num_bytes = 0
    for job in jobs:
        portion.append(job)
        num_bytes += len(job.claimed.body)
        if num_bytes >= PORTION_BYTES:
            yield portion, num_bytes
            portion, num_bytes = [], 0
    if portion:
        yield portion, num_bytes
