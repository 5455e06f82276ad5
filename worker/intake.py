"""From the queue to rows: hold a window open, claim it, tokenize it, cut it into groups."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from millpond.errors import InvalidRequestError, QueueUnavailableError
from millpond.messages import JobRequest, JobResult
from millpond.presets import Preset
from millpond.prompts import prepare_prompt
from millpond.queue import ClaimedJob, JobQueue
from millpond.tokenization import Tokenizer
from worker.engines.base import Capacity
from worker.grouping import cut_groups
from worker.held import HeldJob, failure
from worker.window import WindowPolicy, decide

log = structlog.get_logger("millpond.intake")

# Wake-ups are a hint: an idle worker looks for itself at least this often.
IDLE_LOOK_S = 1.0
REDIS_RETRY_S = 0.25
# Windows with more prompt bytes than this are tokenized off the event loop.
INLINE_TOKENIZE_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class Window:
    """Jobs claimed together: ``groups`` to be prefilled, and ``refused`` with their results."""

    groups: list[list[HeldJob]]
    refused: list[tuple[ClaimedJob, JobResult]]


class Intake:
    """``full`` is the capacity of the engine when it runs nothing."""

    def __init__(
        self,
        queue: JobQueue,
        tokenizer: Tokenizer,
        preset: Preset,
        *,
        worker_id: str,
        policy: WindowPolicy,
        group_padded_tokens: int,
        full: Capacity,
    ) -> None:
        self._queue = queue
        self._tokenizer = tokenizer
        self._preset = preset
        self._worker_id = worker_id
        self._policy = policy
        self._group_padded_tokens = group_padded_tokens
        self._full = full
        self._work = asyncio.Event()  # something may be queued
        self._wanted = asyncio.Event()  # this worker could take it
        self._closed = False
        self._alone = False  # what was claimed last is to run with nothing beside it

    async def listen(self) -> None:
        """Wait for wake-ups for as long as this worker can take more. Run as a task."""
        while True:
            await self._wanted.wait()
            try:
                if await self._queue.wait_for_work(IDLE_LOOK_S):
                    if self._wanted.is_set():
                        self._work.set()
                    else:
                        await self._queue.wake_another()
            except QueueUnavailableError:
                await asyncio.sleep(REDIS_RETRY_S)

    def close(self) -> None:
        """Claim no more: `next_window` answers None, now or after the claim that is under way."""
        self._closed = True
        self._work.set()

    async def next_window(self) -> Window | None:
        """For an idle worker: wait until a window closes, and claim it. None once closed."""
        self._wanted.set()
        opened_s: float | None = None
        while not self._closed:
            try:
                # Cleared before looking: what is queued after the look sets it again.
                self._work.clear()
                waiting = await self._queue.waiting()
                now_s = time.monotonic()
                opened_s = None if waiting == 0 else opened_s or now_s
                decision = decide(
                    self._policy,
                    waiting=waiting,
                    waited_s=now_s - (opened_s or now_s),
                    free_slots=self._full.free_slots,
                )
                if decision.take:
                    window = await self._claim(decision.take, self._full)
                    if window.groups or window.refused:
                        return window
                    opened_s = None
                    continue
            except QueueUnavailableError as error:
                log.warning("queue_away", error=str(error))
                await asyncio.sleep(REDIS_RETRY_S)
                continue
            timeout_s = IDLE_LOOK_S if decision.wait_s is None else decision.wait_s
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._work.wait(), timeout_s)
        return None

    async def refill(self, capacity: Capacity) -> Window | None:
        """For a busy worker: what waits for its free slots, without waiting for more."""
        if capacity.free_slots < 1 or self._alone:
            self._wanted.clear()
            return None
        self._wanted.set()
        if self._closed or not self._work.is_set():
            return None
        self._work.clear()
        try:
            return await self._claim(min(self._policy.max_jobs, capacity.free_slots), capacity)
        except QueueUnavailableError as error:
            log.warning("refill_failed", error=str(error))
            return None

    async def _claim(self, count: int, capacity: Capacity) -> Window:
        claim = await self._queue.claim(
            self._worker_id,
            count,
            budget_tokens=capacity.free_tokens,
            capacity_tokens=self._full.free_tokens,
        )
        self._alone = claim.alone
        if claim.left:
            self._work.set()
        if sum(len(job.body) for job in claim.jobs) > INLINE_TOKENIZE_BYTES:
            return await asyncio.to_thread(self._prepare, claim.jobs)
        return self._prepare(claim.jobs)

    def _prepare(self, claimed: Sequence[ClaimedJob]) -> Window:
        """Read and tokenize a window. A job that cannot become a row ends alone."""
        jobs: list[HeldJob] = []
        refused: list[tuple[ClaimedJob, JobResult]] = []
        for job in claimed:
            request: JobRequest | None = None
            try:
                request = JobRequest.from_json(job.body)
                prompt = prepare_prompt(request, self._preset, self._tokenizer)
            except InvalidRequestError as error:
                refused.append((job, failure(job, error.code, str(error), request)))
            except ValueError as error:
                message = f"the stored request cannot be read: {error}"
                refused.append((job, failure(job, "invalid_request", message, request)))
            else:
                jobs.append(HeldJob(job, request, prompt, window_jobs=len(claimed)))
        lengths = [len(job.prompt.token_ids) for job in jobs]
        groups = cut_groups(lengths, self._group_padded_tokens, max(1, len(jobs)))
        return Window([[jobs[row] for row in group] for group in groups], refused)
