"""The write side of a queue: submit, claim, renew, complete, fail, release, cancel, reap.

Every method runs one atomic script on the server and uses the server's clock. The methods raise
QueueUnavailableError when Redis cannot serve; all are safe to repeat.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from redis.asyncio import Redis

from millpond.errors import (
    IdempotencyConflictError,
    QueueFullError,
)
from millpond.messages import (
    EventType,
    FinishReason,
    JobEvent,
    JobRequest,
    JobResult,
    JobStatus,
    Priority,
    new_job_id,
)
from millpond.messages.stored_results import pack
from millpond.messages.worker_state import WORKER_ALIVE_MS, WorkerState
from millpond.queue.claims import (
    Claim,
    ClaimedJob,
    Commit,
    KeptText,
    KeptTokens,
    Lease,
    Swept,
    new_nonce,
)
from millpond.queue.connection import MAX_BLOCK_S
from millpond.queue.keys import Keys
from millpond.queue.scripts import Arg, Replicas, Scripts, raising_unavailable
from millpond.queue.submission import DEFAULT_TENANT, NewJob, Submission, read_answer, script_fields
from millpond.queue.watching import QueueWatch

MIN_BLOCK_S = 0.001  # the server takes 0 for no end
UNBOUNDED = 2**53
SWEEP_LIMIT = 100  # bounds the work of one call; the rest waits for the next one
FORGET_WORKER_AFTER_MS = 60_000
# Jobs in one script call: enough to share its fixed cost, and about 1 ms of the server's time.
SUBMITS_A_CALL = 100
COMPLETES_A_CALL = 32
EMITS_A_CALL = 128
# It is stored with each job, so it is short; it only has to differ from that of the same id and request.
SUBMIT_NONCE_CHARS = 8


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """The queue's guarantees. Use the same values in every process of a queue."""

    lease_s: float = 15.0
    max_attempts: int = 3
    max_deaths: int = 6
    retry_delay_s: float = 1.0
    retry_delay_max_s: float = 60.0
    result_ttl_s: float = 24 * 3600.0
    event_ttl_s: float = 600.0
    event_maxlen: int = 10_000
    max_depth: int = 100_000
    max_tenant_bytes: int = 2**30
    ageing_ms: float = 20.0
    dead_max: int = 10_000
    listed_max: int = 1_000
    suspect_wait_s: float = 10.0
    submit_replicas: int = 0
    submit_replicas_timeout_s: float = 1.0

    def to_json(self) -> bytes:
        """The options that the scripts read."""
        return orjson.dumps(
            {
                "result_ttl_ms": round(self.result_ttl_s * 1000),
                "event_ttl_ms": round(self.event_ttl_s * 1000),
                "event_maxlen": self.event_maxlen,
                "max_attempts": self.max_attempts,
                "max_deaths": self.max_deaths,
                "retry_delay_ms": round(self.retry_delay_s * 1000),
                "retry_delay_max_ms": round(self.retry_delay_max_s * 1000),
                "dead_max": self.dead_max,
                "listed_max": self.listed_max,
                "suspect_wait_ms": round(self.suspect_wait_s * 1000),
                "alive_ms": WORKER_ALIVE_MS,
            }
        )


class JobQueue:
    def __init__(self, redis: Redis, queue: str, options: QueueOptions | None = None) -> None:
        self.keys = Keys(queue)
        self.options = options or QueueOptions()
        self._redis = redis
        self._scripts = Scripts(redis, self.keys)
        self.watch = QueueWatch(redis, self.keys)
        self._options_json = self.options.to_json()
        number, timeout_s = self.options.submit_replicas, self.options.submit_replicas_timeout_s
        self._replicas = Replicas(number, timeout_s) if number else None

    async def submit(
        self,
        request: JobRequest,
        *,
        id: str | None = None,
        tenant: str = DEFAULT_TENANT,
        tokens: int | None = None,
    ) -> Submission:
        """Store the job and add it to its lane. Returns once Redis has answered, and as many replicas
        have it as the options ask for.

        A known ``id`` with the same request returns the existing job. Raises
        IdempotencyConflictError for a known id with another request, QueueFullError at the depth
        limit, InvalidRequestError for a malformed id or tenant.
        """
        [answer] = await self.submit_many([NewJob(request, id, tenant, tokens)])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def submit_many(
        self, jobs: Sequence[NewJob]
    ) -> list[Submission | IdempotencyConflictError | QueueFullError]:
        """Submit many jobs in one round trip; each is accepted or refused on its own."""
        ids = [job.id or new_job_id() for job in jobs]
        fields = [script_fields(id, job) for id, job in zip(ids, jobs, strict=True)]
        answers = await self._scripts.run_batched(
            "submit",
            SUBMITS_A_CALL,
            fields,
            first=[
                self.options.max_depth,
                self.options.ageing_ms,
                new_nonce()[:SUBMIT_NONCE_CHARS],
                self.options.max_tenant_bytes,
            ],
            replicas=self._replicas,
        )
        pairs = zip(answers[::2], answers[1::2], strict=True)
        return [
            read_answer(
                id,
                job,
                *pair,
                max_depth=self.options.max_depth,
                max_tenant_bytes=self.options.max_tenant_bytes,
            )
            for id, job, pair in zip(ids, jobs, pairs, strict=True)
        ]

    async def claim(
        self,
        worker: str,
        count: int,
        *,
        budget_tokens: int,
        capacity_tokens: int,
        slots: int = UNBOUNDED,
        row_tokens: int = UNBOUNDED,
        nonce: str | None = None,
    ) -> Claim:
        """Take up to ``count`` jobs that fit ``budget_tokens`` together, each with a lease and a fence.

        ``capacity_tokens`` is the budget of an idle worker. A job with more texts than ``slots``, or more
        than ``row_tokens`` for each, is left to a larger worker if one lives. ``nonce`` (no spaces)
        identifies the claim: repeating it after a lost answer returns the jobs of that claim that are
        still held, whatever ``count`` is. None: a new one.
        """
        now, left, jobs, mode, missing = await self._scripts.run(
            "claim",
            worker,
            nonce or new_nonce(),
            count,
            budget_tokens,
            capacity_tokens,
            self._lease_ms,
            SWEEP_LIMIT,
            slots,
            row_tokens,
            self._options_json,
        )
        return Claim(
            [
                ClaimedJob(
                    id.decode(),
                    fence,
                    attempt,
                    now,
                    max(0, now - int(created)),
                    body,
                    predicted,
                    trace and trace.decode(),
                    tuple(KeptText(*text) for text in kept or ()),
                )
                for id, fence, attempt, created, body, predicted, trace, kept in jobs
            ],
            left,
            alone=mode == b"alone",
            draining=mode == b"draining",
            missing=missing,
        )

    async def renew(self, held: Sequence[tuple[str, int]]) -> list[Lease]:
        """Renew the leases of all held (id, fence) pairs in one call; returns the outcome of each."""
        args = [arg for pair in held for arg in pair]
        answers = await self._scripts.run("renew", self._lease_ms, *args)
        return [Lease(answer.decode()) for answer in answers]

    async def complete(self, results: Sequence[tuple[int, JobResult]]) -> list[Commit]:
        """Store the final results of (fence, result) pairs: status, event and messages, atomically."""
        items: list[list[Arg]] = [
            [result.id, fence, result.status, pack(result), *_lengths(result)]
            for fence, result in results
        ]
        answers = await self._scripts.run_batched(
            "complete", COMPLETES_A_CALL, items, last=[self._options_json]
        )
        return [Commit(answer.decode()) for answer in answers]

    async def fail(self, fence: int, attempt: int, result: JobResult) -> Commit:
        """End this attempt: the job is retried after a delay that doubles with each attempt.

        After the last attempt ``result`` is stored and the job is added to the dead letters. A job with
        a pending cancel is not retried: STORED, as cancelled.
        """
        assert result.status is JobStatus.FAILED
        delay_s = min(
            self.options.retry_delay_s * 2 ** (attempt - 1), self.options.retry_delay_max_s
        )
        answer = await self._scripts.run(
            "fail", result.id, fence, round(delay_s * 1000), pack(result), self._options_json
        )
        return Commit(answer.decode())

    async def suspect(self, held: Sequence[tuple[int, JobResult]]) -> int:
        """Give back what a broken engine ran, as (fence, result if it was the last attempt) pairs.

        Several: no attempt is spent, and they are run again by halves, to corner the one that broke
        it. One: as `fail`, but tried again at once. Returns how many were still ours.
        """
        args: list[Arg] = []
        for fence, result in held:
            args += [result.id, fence, pack(result)]
        return int(await self._scripts.run("suspect", *args, self._options_json))

    async def release(self, held: Sequence[tuple[str, int]]) -> int:
        """Return jobs to their places in their lanes and refund the attempt. Returns how many."""
        if not held:
            return 0
        args = [arg for pair in held for arg in pair]
        return int(await self._scripts.run("release", *args, self._options_json))

    async def cancel(self, id: str, *, tenant: str | None = None) -> JobStatus | None:
        """End a queued job, or flag a running one. Returns the status afterwards; None: no such job."""
        answer = await self._scripts.run("cancel", id, tenant or "", self._options_json)
        return None if answer is None else JobStatus(answer.decode())

    async def forget_dead(self, id: str) -> None:
        """Take it off the dead letters if it is one. Its result stays."""
        await self._scripts.run("dead_forget", id)

    async def reap(self) -> Swept:
        """Requeue expired leases and due retries, and end jobs past their deadlines."""
        return Swept(*await self._scripts.run("reap", SWEEP_LIMIT, self._options_json))

    async def emit(
        self,
        deltas: Sequence[tuple[int, JobEvent]],
        kept: Sequence[tuple[int, KeptTokens]] = (),
    ) -> list[Commit]:
        """Add (fence, tokens) pairs to what is kept of their jobs, then (fence, delta) pairs to the streams.

        Answers are in that order. KNOWN: what begins at this offset was written before, or the job keeps no
        stream. So a caller that got no answer sends the same again.
        """
        items: list[list[Arg]] = [
            [k.id, fence, f"kept:{k.index}", k.offset, len(k.tokens), k.tokens] for fence, k in kept
        ]
        items += [
            [
                event.id,
                fence,
                _part(event),
                event.offset,
                len(event.text),
                # The stream names the entry; the script puts that name into what it publishes.
                event.model_dump_json(exclude_none=True, exclude={"event_id"}),
            ]
            for fence, event in deltas
        ]
        answers = await self._scripts.run_batched(
            "emit", EMITS_A_CALL, items, first=[self.options.event_maxlen]
        )
        return [Commit(answer.decode()) for answer in answers]

    async def try_write(self) -> None:
        """Check, without writing, whether the server would accept a new job now."""
        await self._scripts.run("try_write")

    async def beat(self, worker: str, state: WorkerState | None) -> bool:
        """Write the worker's registry entry; None removes it. Whether somebody watches its rows."""
        text = b"" if state is None else state.to_json()
        return bool(await self._scripts.run("beat", worker, text, FORGET_WORKER_AFTER_MS))

    async def depth(self) -> int:
        """Queued jobs, delayed retries included."""
        depth, _ = await self._depth_and_delayed()
        return depth

    async def waiting(self) -> int:
        """Jobs that a claim could take now."""
        depth, delayed = await self._depth_and_delayed()
        return max(0, depth - delayed)  # the two are read one after the other

    async def _depth_and_delayed(self) -> tuple[int, int]:
        with raising_unavailable():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.hmget(self.keys.counts, [f"queued:{priority}" for priority in Priority])
                pipe.zcard(self.keys["delayed"])
                queued, delayed = await pipe.execute()
        return sum(int(number or 0) for number in queued), delayed

    async def wait_for_work(self, timeout_s: float) -> bool:
        """Block until a job is queued or the time is up. May return early for no reason."""
        with raising_unavailable():
            timeout_s = max(MIN_BLOCK_S, min(timeout_s, MAX_BLOCK_S))
            token = await self._redis.blpop([self.keys.wake], timeout=timeout_s)
        return token is not None

    @property
    def _lease_ms(self) -> int:
        return round(self.options.lease_s * 1000)

    async def wake_another(self) -> None:
        """Pass on a wake-up that this worker cannot use."""
        await self._scripts.run("wake")


def _lengths(result: JobResult) -> list[Arg]:
    """For `complete.lua`: tokens to charge to the tenant, and an output length to learn from.

    A job that never became a row is charged nothing; only jobs that succeed are learnt from. A job with
    several texts counts with their mean length, since a prediction is for one text. Where some were cancelled
    after a vote, that mean would be too small.
    """
    if result.usage is None:
        return [0, "", ""]
    output = result.usage.completion_tokens
    served = result.usage.prompt_tokens + output
    cut = result.vote is not None and bool(result.vote.cancelled)
    if result.status is not JobStatus.SUCCEEDED or output < 1 or cut:
        return [served, "", ""]
    output = max(1, output // len(result.choices or [result]))
    return [served, output, "1" if result.finish_reason is FinishReason.LENGTH else "0"]


def _part(event: JobEvent) -> str:
    """Which of the job's texts it goes on, as the record names it."""
    choice = "" if event.index is None else f":{event.index}"
    return f"{'thought' if event.type is EventType.REASONING else 'said'}{choice}"
