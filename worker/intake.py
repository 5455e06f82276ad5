"""From the queue to rows: hold a window open, claim it, tokenize it, cut it into groups.

Under a backlog a few jobs are claimed and tokenized while a turn runs, so that the slots which it
frees are filled without a round trip.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from millpond.claims import Claim, ClaimedJob, new_nonce
from millpond.errors import InvalidRequestError, QueueUnavailableError
from millpond.logs import outline
from millpond.messages import JobRequest, JobResult
from millpond.presets import Preset
from millpond.prompts import prepare_prompt
from millpond.queue import JobQueue
from millpond.tasks import end_tasks
from millpond.tokenization import Tokenizer
from worker.engines.base import Capacity
from worker.grouping import cut_groups
from worker.held import HeldJob, failure
from worker.window import WindowPolicy, decide

log = structlog.get_logger("millpond.intake")

# Wake-ups are a hint: an idle worker looks for itself at least this often.
IDLE_LOOK_S = 1.0
REDIS_RETRY_S = 0.25
# Jobs claimed ahead: at most one for so many slots, and no more than lately ended in so many turns.
# A job held back here while another worker idles would wait for nothing.
SLOTS_FOR_EACH_AHEAD = 16
RECENT_TURNS = 8
# Windows with more prompt bytes than this are tokenized off the event loop.
INLINE_TOKENIZE_BYTES = 16_384


# Jobs claimed together, in groups of like length to be prefilled together.
Groups = list[list[HeldJob]]


class Intake:
    """``full`` is the capacity of the engine when it runs nothing.

    Of each job that is claimed either ``hold`` hears at once, if it is to become rows, or ``refuse``
    with its result.
    """

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
        hold: Callable[[Sequence[HeldJob]], None],
        refuse: Callable[[ClaimedJob, JobResult], None],
    ) -> None:
        self._queue = queue
        self._tokenizer = tokenizer
        self._preset = preset
        self._worker_id = worker_id
        self._policy = policy
        self._group_padded_tokens = group_padded_tokens
        self._full = full
        self._hold = hold
        self._refuse = refuse
        self._work = asyncio.Event()  # something may be queued
        self._wanted = asyncio.Event()  # this worker could take it
        self._closed = False
        self._alone = False  # what was claimed last is to run with nothing beside it
        self._underway: str | None = None  # the nonce of a claim whose jobs are not here yet
        self._ahead: list[HeldJob] = []
        self._claiming: asyncio.Task[None] | None = None
        self._recently_ended: deque[int] = deque(maxlen=RECENT_TURNS)

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

    async def next_window(self) -> Groups:
        """For an idle worker: wait until a window closes, and claim it. Empty once closed."""
        await self._claimed()
        ahead = self._take_ahead(self._full)
        if ahead:
            return ahead
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
                if decision.take or self._underway is not None:
                    groups = await self._claim(decision.take, self._full)
                    if groups:
                        return groups
                    opened_s = None
                    continue
            except QueueUnavailableError as error:
                log.warning("queue_away", error=str(error))
                await asyncio.sleep(REDIS_RETRY_S)
                continue
            timeout_s = IDLE_LOOK_S if decision.wait_s is None else decision.wait_s
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._work.wait(), timeout_s)
        return []

    async def refill(self, capacity: Capacity) -> Groups:
        """For a busy worker: what waits for its free slots, without waiting for more."""
        if capacity.free_slots > 0:
            await self._claimed()
        groups = self._take_ahead(capacity)
        if capacity.free_slots < 1 or self._alone:
            self._wanted.clear()
            return groups
        self._wanted.set()
        if self._closed or not self._work.is_set() or self._ahead:
            return groups
        left = less(capacity, [job for group in groups for job in group])
        if left.free_slots < 1:
            return groups
        self._work.clear()
        try:
            return groups + await self._claim(min(self._policy.max_jobs, left.free_slots), left)
        except QueueUnavailableError as error:
            log.warning("refill_failed", error=str(error))
            self._work_later()
            return groups

    def look_ahead(self, num_ended: int) -> None:
        """Claim for the slots that the coming turn will free, if there is a backlog.

        ``num_ended`` rows ended in the turn before.
        """
        self._recently_ended.append(num_ended)
        wanted = min(self._full.free_slots // SLOTS_FOR_EACH_AHEAD, sum(self._recently_ended))
        wanted -= len(self._ahead)
        if self._claiming is not None and self._claiming.done():
            self._claiming = None
        if wanted < 1 and self._underway is None:
            return
        if self._closed or self._alone or self._claiming or not self._work.is_set():
            return
        slots = max(0, wanted)
        # Their share of the worker; suspects only come to one that has room for everything.
        tokens = self._full.free_tokens * slots // self._full.free_slots
        self._work.clear()
        self._claiming = asyncio.create_task(self._claim_ahead(Capacity(slots, tokens)))

    async def put_down(self) -> list[HeldJob]:
        """What was claimed ahead and will not be run here."""
        await self._claimed()
        left, self._ahead = self._ahead, []
        return left

    async def break_off(self) -> None:
        """Give up a claim that is under way; `unheard` tells what it gave."""
        await end_tasks(self._claiming)

    async def unheard(self) -> list[ClaimedJob]:
        """What was claimed and did not get here, to be released. Raises QueueUnavailableError."""
        if self._underway is None:
            return []
        return (await self._ask(0, self._full)).jobs

    def forget_unheard(self) -> None:
        """It has been released."""
        self._underway = None

    def _work_later(self) -> None:
        asyncio.get_running_loop().call_later(REDIS_RETRY_S, self._work.set)

    async def _claimed(self) -> None:
        if self._claiming is not None:
            await self._claiming
            self._claiming = None

    async def _claim_ahead(self, capacity: Capacity) -> None:
        try:
            groups = await self._claim(capacity.free_slots, capacity)
        except QueueUnavailableError as error:
            log.warning("look_ahead_failed", error=str(error))
            self._work_later()
            return
        self._ahead += [job for group in groups for job in group]

    def _take_ahead(self, capacity: Capacity) -> Groups:
        """What was claimed ahead and fits now, in the order of the claims, and what needs no room.

        The first fits an idle engine in any case: nothing will come free by waiting.
        """
        taken = [job for job in self._ahead if job.over]
        self._ahead = [job for job in self._ahead if not job.over]
        while self._ahead and (capacity == self._full or _fits(self._ahead[0], capacity)):
            job = self._ahead.pop(0)
            capacity = less(capacity, [job])
            taken.append(job)
        return self._cut(taken)

    async def _ask(self, count: int, capacity: Capacity) -> Claim:
        """Claim under one nonce until its jobs are here: those claimed unheard are handed out again."""
        self._underway = self._underway or new_nonce()
        return await self._queue.claim(
            self._worker_id,
            count,
            budget_tokens=capacity.free_tokens,
            capacity_tokens=self._full.free_tokens,
            nonce=self._underway,
        )

    async def _claim(self, count: int, capacity: Capacity) -> Groups:
        claim = await self._ask(count, capacity)
        self._alone = claim.alone
        if claim.left:
            self._work.set()
        if sum(len(job.body) for job in claim.jobs) > INLINE_TOKENIZE_BYTES:
            jobs, refused = await asyncio.to_thread(self._prepare, claim.jobs)
        else:
            jobs, refused = self._prepare(claim.jobs)
        self._hold(jobs)
        for job, result in refused:
            self._refuse(job, result)
        self._underway = None
        return self._cut(jobs)

    def _prepare(
        self, claimed: Sequence[ClaimedJob]
    ) -> tuple[list[HeldJob], list[tuple[ClaimedJob, JobResult]]]:
        """Read and tokenize jobs; those that cannot become rows with their results."""
        jobs: list[HeldJob] = []
        refused: list[tuple[ClaimedJob, JobResult]] = []
        for job in claimed:
            request: JobRequest | None = None
            try:
                request = JobRequest.from_json(job.body)
                prompt = prepare_prompt(request, self._preset, self._tokenizer)
                self._check_slots(request)
            except InvalidRequestError as error:
                refused.append((job, failure(job, error.code, str(error), request)))
            except ValueError as error:
                message = f"the stored request cannot be read: {error}"
                refused.append((job, failure(job, "invalid_request", message, request)))
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # a panic of the tokenizer's Rust code is no Exception
                log.error("preparation_failed", job=job.id, **outline(error))
                message = f"the request could not be prepared: {type(error).__name__}"
                refused.append((job, failure(job, "preparation_failed", message, request)))
            else:
                jobs.append(HeldJob(job, request, prompt, window_jobs=len(claimed)))
        return jobs, refused

    def _check_slots(self, request: JobRequest) -> None:
        slots = self._full.free_slots
        if request.n > slots:
            message = f"{request.n} texts at once, this worker has {slots} slots"
            raise InvalidRequestError("n", message, limit=slots)

    def _cut(self, jobs: Sequence[HeldJob]) -> Groups:
        lengths = [len(job.prompt.token_ids) for job in jobs]
        groups = cut_groups(lengths, self._group_padded_tokens, max(1, len(jobs)))
        return [[jobs[row] for row in group] for group in groups]


def _fits(job: HeldJob, capacity: Capacity) -> bool:
    free_slots, free_tokens = capacity.free_slots, capacity.free_tokens
    return len(job.waiting) <= free_slots and job.expected_tokens <= free_tokens


def less(capacity: Capacity, jobs: Sequence[HeldJob]) -> Capacity:
    """What is left of it beside these jobs."""
    rows = [job for job in jobs if not job.over]
    return Capacity(
        capacity.free_slots - sum(len(job.waiting) for job in rows),
        capacity.free_tokens - sum(job.expected_tokens for job in rows),
    )
