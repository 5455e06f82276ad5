"""No script holds the server's one thread for long, with the largest of everything that is allowed.

Times are the server's own (SLOWLOG), the best of a few runs: other processes want the machine too.
"""

import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from redis.asyncio import Redis

from millpond.local.server import RedisServer
from millpond.messages import (
    MAX_METADATA_ITEMS,
    MAX_METADATA_VALUE_CHARS,
    MAX_PROMPT_CHARS,
    EventType,
    FinishReason,
    GeneratedToken,
    JobEvent,
    JobRequest,
    JobResult,
    JobStatus,
    TokenLogprob,
    Usage,
)
from millpond.messages.sampling_params import MAX_LOGPROBS
from millpond.models.limits import MAX_LOGPROB_ENTRIES
from millpond.queue.claims import Claim
from millpond.queue.connection import connect
from millpond.queue.job_queue import SWEEP_LIMIT, JobQueue
from millpond.queue.results import Results
from millpond.queue.submission import NewJob
from millpond.queue.subscriptions import Subscriptions
from tests.contract.invariants import check_invariants
from tests.contract.jobs import PLENTY, put, take, until

pytestmark = pytest.mark.alone

LIMIT_MS = 10.0
RUNS = 4
METADATA = {f"{i:02}" + "é" * 62: "€" * MAX_METADATA_VALUE_CHARS for i in range(MAX_METADATA_ITEMS)}


@pytest.fixture
async def real(redis_server: RedisServer) -> AsyncIterator[Redis]:
    redis = connect(redis_server.url)
    yield redis
    await redis.aclose()


@pytest.fixture
def queue(real: Redis) -> JobQueue:
    return JobQueue(real, "test")


Work = Callable[[], Awaitable[object]]  # a function with a name


async def slowest_ms(redis: Redis, prepare: Work, work: Work) -> float:
    """The longest script of ``work``, in the best of a few runs."""
    slowest = []
    for _ in range(RUNS):
        await redis.flushall()
        await prepare()
        await redis.config_set("slowlog-log-slower-than", 0)
        await redis.slowlog_reset()
        await work()
        await redis.config_set("slowlog-log-slower-than", -1)
        calls = await redis.slowlog_get(10_000)
        scripts = [c["duration"] for c in calls if bytes(c["command"]).startswith(b"EVAL")]
        assert scripts
        slowest.append(max(scripts) / 1000)
    print(f"{work.__name__}: {min(slowest):.2f} ms")
    return min(slowest)


def largest() -> JobRequest:
    return JobRequest(prompt="€" * MAX_PROMPT_CHARS, metadata=METADATA)


def largest_result(id: str) -> JobResult:
    """Of a job with all logprobs that one may ask for."""
    chance = random.Random(id)

    def token() -> TokenLogprob:
        return TokenLogprob(
            token_id=chance.randrange(150_000),
            token=f" w{chance.randrange(150_000)}",
            logprob=round(-chance.expovariate(0.3), 6),
        )

    number = MAX_LOGPROB_ENTRIES // (1 + MAX_LOGPROBS)
    logprobs = [
        GeneratedToken(**token().model_dump(), top=[token() for _ in range(MAX_LOGPROBS)])
        for _ in range(number)
    ]
    return JobResult(
        id=id,
        status=JobStatus.SUCCEEDED,
        finish_reason=FinishReason.LENGTH,
        text="".join(one.token for one in logprobs),
        logprobs=logprobs,
        usage=Usage(prompt_tokens=1, completion_tokens=number),
    )


def new(number: int, request: JobRequest) -> list[NewJob]:
    return [NewJob(request, id=f"j{i}", tokens=10) for i in range(number)]


async def test_submit_and_claim_of_the_largest_requests(real: Redis, queue: JobQueue) -> None:
    jobs = new(6, largest())

    async def nothing() -> None: ...

    async def submit() -> object:
        return await queue.submit_many(jobs)

    async def claim() -> Claim:
        claim = await queue.claim("w", 64, budget_tokens=PLENTY, capacity_tokens=PLENTY)
        assert claim.jobs
        return claim

    assert await slowest_ms(real, nothing, submit) < LIMIT_MS
    assert await slowest_ms(real, submit, claim) < LIMIT_MS
    await check_invariants(real, queue.keys)


async def test_expiry_with_all_metadata(real: Redis, queue: JobQueue) -> None:
    request = JobRequest(prompt="€" * 30_000, metadata=METADATA, deadline_s=0.001)

    async def submit() -> None:
        await queue.submit_many(new(2 * SWEEP_LIMIT, request))

    async def sweep() -> None:
        await until(lambda: none_waits(queue))

    async def claim() -> None:
        await until(lambda: none_is_found(queue))

    assert await slowest_ms(real, submit, sweep) < LIMIT_MS
    assert await slowest_ms(real, submit, claim) < LIMIT_MS
    await check_invariants(real, queue.keys)


async def none_is_found(queue: JobQueue) -> bool:
    """A claim sweeps too, and ends what it meets in the lanes."""
    assert await take(queue) == []
    return await queue.depth() == 0


async def none_waits(queue: JobQueue) -> bool:
    await queue.reap()
    return await queue.depth() == 0


async def test_complete_and_look_at_the_largest_results(real: Redis, queue: JobQueue) -> None:
    subscriptions = Subscriptions(real)
    results = Results(real, "test", subscriptions)
    largest = {f"j{i}": largest_result(f"j{i}") for i in range(4)}
    held: list[tuple[int, JobResult]] = []

    async def claim() -> None:
        await put(queue, *largest)
        held[:] = [(job.fence, largest[job.id]) for job in await take(queue)]

    async def complete() -> None:
        await queue.complete(held)
        view = await results.get("j0")
        assert view.result is not None
        assert view.result.logprobs == largest["j0"].logprobs

    assert await slowest_ms(real, claim, complete) < LIMIT_MS
    await check_invariants(real, queue.keys)
    await subscriptions.close()


async def test_emit_after_a_long_outage(real: Redis, queue: JobQueue) -> None:
    """All rows of a large worker have much to say at once."""
    deltas: list[tuple[int, JobEvent]] = []

    async def claim() -> None:
        await put(queue, *(f"j{i}" for i in range(256)))
        deltas[:] = [
            (job.fence, JobEvent(type=EventType.DELTA, id=job.id, attempt=1, text="€" * 20_000))
            for job in await take(queue, 256)
        ]

    async def emit() -> object:
        return await queue.emit(deltas)

    assert await slowest_ms(real, claim, emit) < LIMIT_MS
