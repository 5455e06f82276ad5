"""Output lengths: learnt from results, used for what is reserved, charged and claimed first."""

import random

import pytest
from redis.asyncio import Redis

from millpond.messages import FinishReason, JobRequest, Priority, Usage, new_job_id
from millpond.queue.job_queue import JobQueue
from millpond.queue.results import Results
from millpond.queue.submission import NewJob
from tests.contract.invariants import Snapshot
from tests.contract.jobs import PLENTY, failed, ids, success, take, with_options

ASK = JobRequest(prompt="a question", stream=False)
RAW = JobRequest(prompt="a text", raw=True, stream=False)
PROMPT, MOST = 10, 4_000
ENOUGH = 20


@pytest.fixture
def deep(queue: JobQueue, redis: Redis) -> JobQueue:
    return with_options(queue, redis, max_depth=10_000)


async def put(queue: JobQueue, id: str, request: JobRequest, most: int = MOST) -> None:
    await queue.submit_many([NewJob(request, id, tokens=PROMPT + most, prompt_tokens=PROMPT)])


async def teach(
    queue: JobQueue,
    request: JobRequest,
    outputs: list[int],
    reason: FinishReason = FinishReason.STOP,
) -> None:
    """Run a job for each output, that many tokens long."""
    for _ in outputs:
        await put(queue, new_job_id(), request)
    results = []
    for job, output in zip(await take(queue, len(outputs)), outputs, strict=True):
        usage = Usage(prompt_tokens=PROMPT, completion_tokens=output)
        results.append(
            (job.fence, success(job.id, usage=usage).model_copy(update={"finish_reason": reason}))
        )
    await queue.complete(results)


async def predicted(queue: JobQueue, request: JobRequest, most: int = MOST) -> int | None:
    """What is predicted for the next job of this kind."""
    await put(queue, new_job_id(), request, most)
    [job] = await take(queue, 1)
    await queue.complete([(job.fence, success(job.id))])
    return job.predicted_tokens


async def test_nothing_is_predicted_before_enough_is_known(deep: JobQueue) -> None:
    await teach(deep, ASK, [64] * (ENOUGH - 1))
    assert await predicted(deep, ASK) is None
    await teach(deep, ASK, [64])
    assert await predicted(deep, ASK) == 64


async def test_nine_of_ten_are_no_longer_than_predicted(deep: JobQueue) -> None:
    chance = random.Random(3)

    def outputs(median: float, number: int) -> list[int]:
        return [max(1, round(median * chance.lognormvariate(0, 0.8))) for _ in range(number)]

    for _ in range(8):
        await teach(deep, ASK, outputs(50, 100))
        await teach(deep, RAW, outputs(600, 100))
    for request, median in ((ASK, 50), (RAW, 600)):
        enough = await predicted(deep, request)
        assert enough is not None
        later = outputs(median, 2_000)
        share = sum(output <= enough for output in later) / len(later)
        assert 0.8 <= share <= 0.97, f"{share:.2f} of {request.prompt} fit into {enough}"


async def test_a_change_of_habits_is_followed(deep: JobQueue) -> None:
    await teach(deep, ASK, [32] * 200)
    await teach(deep, ASK, [1_024] * 200)
    enough = await predicted(deep, ASK)
    assert enough is not None
    assert 900 <= enough <= 1_200


async def test_a_kind_that_is_new_is_taken_for_all(deep: JobQueue) -> None:
    await teach(deep, ASK, [64] * ENOUGH)
    assert await predicted(deep, RAW) == 64
    await teach(deep, RAW, [512] * ENOUGH)
    assert await predicted(deep, RAW) == 512


async def test_no_more_is_predicted_than_may_be_written(deep: JobQueue) -> None:
    await teach(deep, ASK, [500] * ENOUGH)
    assert await predicted(deep, ASK, most=30) == 30


async def test_a_guess_of_the_most_bounds_no_prediction(deep: JobQueue) -> None:
    """A submitter that neither says nor knows how much may be written."""
    await teach(deep, ASK, [1_000] * ENOUGH)
    for id, asked in (("any", ASK), ("little", ASK.model_copy(update={"max_tokens": 5}))):
        await deep.submit_many([NewJob(asked, id)])
    assert {job.id: job.predicted_tokens for job in await take(deep)} == {"any": 1_000, "little": 5}


async def test_outputs_cut_by_their_limit_are_not_taken_for_short(deep: JobQueue) -> None:
    await teach(deep, ASK, [500] * ENOUGH)
    before = await predicted(deep, ASK)
    await teach(deep, ASK, [10] * 300, FinishReason.LENGTH)
    assert await predicted(deep, ASK) == before


async def test_only_success_teaches_and_once(deep: JobQueue, redis: Redis) -> None:
    await put(deep, "a", ASK)
    await put(deep, "b", ASK)
    a, b = await take(deep)
    usage = Usage(prompt_tokens=PROMPT, completion_tokens=5)
    for _ in range(2):
        await deep.complete([(a.fence, success("a", usage=usage))])
    await deep.complete([(b.fence, failed("b").model_copy(update={"usage": usage}))])
    lengths = (await Snapshot.take(redis, deep.keys)).get("lengths")
    assert {kind: line.split()[0] for kind, line in lengths.items()} == {"ask4": "1", "all": "1"}


async def test_the_budget_counts_what_is_predicted(deep: JobQueue) -> None:
    await teach(deep, ASK, [90] * ENOUGH)
    for i in range(5):
        await put(deep, f"j{i}", ASK)
    assert len(await take(deep, budget=3 * (PROMPT + 90), capacity=PLENTY)) == 3


async def test_a_tenant_is_charged_for_what_is_predicted(deep: JobQueue, redis: Redis) -> None:
    await teach(deep, ASK, [50] * ENOUGH)
    for i in range(2):
        await put(deep, f"j{i}", ASK)
    before = (await Snapshot.take(redis, deep.keys)).counters("active", Priority.NORMAL)["default"]
    await take(deep, 1)
    after = (await Snapshot.take(redis, deep.keys)).counters("active", Priority.NORMAL)["default"]
    assert after - before == (PROMPT + 50) * 1_000


async def test_a_claim_made_again_predicts_the_same(deep: JobQueue) -> None:
    await teach(deep, ASK, [50] * ENOUGH)
    await put(deep, "a", ASK)
    for _ in range(2):
        claim = await deep.claim(
            "w", 1, budget_tokens=PLENTY, capacity_tokens=PLENTY, nonce="again"
        )
        assert [(j.id, j.predicted_tokens) for j in claim.jobs] == [("a", 50)]


@pytest.mark.parametrize(
    ("ageing_ms", "first"),
    [(100.0, "short"), (0.0, "long")],
    ids=["shorter first", "order of arrival"],
)
async def test_the_shorter_goes_first(
    deep: JobQueue, redis: Redis, results: Results, ageing_ms: float, first: str
) -> None:
    queue = with_options(deep, redis, ageing_ms=ageing_ms)
    await teach(queue, RAW, [2_000] * ENOUGH)
    await teach(queue, ASK, [20] * ENOUGH)
    await put(queue, "long", RAW)
    await put(queue, "short", ASK)
    assert (await results.get(first)).position == 1
    [job] = await take(queue, 1)
    assert job.id == first
    await queue.release([(job.id, job.fence)])
    assert ids(await take(queue, 1)) == [first]


async def test_a_long_job_is_overtaken_for_a_time_only(deep: JobQueue, redis: Redis) -> None:
    """Shorter jobs that come later than its length is worth go behind it."""
    queue = with_options(deep, redis, ageing_ms=10.0)
    await teach(queue, RAW, [2_000] * ENOUGH)
    await teach(queue, ASK, [20] * ENOUGH)
    await put(queue, "long", RAW)
    await put(queue, "short", ASK)
    orders = {
        id: int(await redis.hget(queue.keys.job(id), "order") or 0) for id in ("long", "short")
    }
    created_ms = int(await redis.hget(queue.keys.job("long"), "created") or 0)
    assert orders["short"] < orders["long"]
    assert orders["long"] / 1000 - created_ms == pytest.approx(10.0 * 2_000, abs=2)
