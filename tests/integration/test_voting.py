"""Texts of one prompt that vote: the worker around the simulated engine, on a real server."""

from collections.abc import AsyncIterator, Sequence

import pytest

from millpond.local.server import RedisServer
from millpond.messages import FinishReason, JobResult, JobStatus, choice_seed
from millpond.queue.connection import connect
from millpond.queue.job_queue import JobQueue
from millpond.queue.results import Results
from millpond.queue.subscriptions import Subscriptions
from tests.integration.test_worker import PACED, Bench, is_running, until
from worker.engines.base import Sampling
from worker.engines.simulated import SimulatedConfig, SimulatedFaults

SEED = 3


@pytest.fixture
async def bench(redis_server: RedisServer) -> AsyncIterator[Bench]:
    redis = connect(redis_server.url)
    subscriptions = Subscriptions(redis)
    yield Bench(redis_server, JobQueue(redis, "test"), Results(redis, "test", subscriptions))
    await subscriptions.close()
    await redis.aclose()


def writing(*texts: str) -> SimulatedConfig:
    """Each text of a job with `SEED` says this, as many tokens as it has characters."""
    said = {choice_seed(SEED, index): text.encode() for index, text in enumerate(texts)}

    def write(prompt: Sequence[int], sampling: Sampling) -> bytes:
        return said[sampling.seed]

    return SimulatedConfig(PACED, write=write)


def thinking(length: int, answer: str) -> str:
    return "m" * length + rf"\boxed{{{answer}}}"


async def voted(
    bench: Bench, *texts: str, max_tokens: int = 900, kv_tokens: int | None = None
) -> JobResult:
    async with bench.worker(writing(*texts), kv_tokens=kv_tokens):
        id = await bench.submit("p", n=len(texts), vote="boxed", seed=SEED, max_tokens=max_tokens)
        result = (await bench.results.wait(id, 20.0)).result
    assert result is not None
    return result


async def test_texts_that_cannot_change_the_answer_are_cancelled(bench: Bench) -> None:
    result = await voted(
        bench,
        *(thinking(800, "1"), thinking(5, "2"), thinking(10, "3"), thinking(20, "2")),
        *(thinking(40, "2"), thinking(60, "2"), thinking(800, "3")),
    )
    assert (result.status, result.finish_reason) == (JobStatus.SUCCEEDED, FinishReason.STOP)
    assert result.text == thinking(5, "2")
    assert result.error is None
    assert result.vote is not None
    assert (result.vote.answer, result.vote.winner) == ("2", 1)
    assert [(a.answer, a.count, a.texts) for a in result.vote.answers] == [
        ("2", 4, [1, 3, 4, 5]),
        ("3", 1, [2]),
    ]
    assert result.vote.cancelled == [0, 6]
    choices = result.choices or []
    assert [c.finish_reason for c in choices if c.index in (0, 6)] == [FinishReason.CANCELLED] * 2
    assert all(0 < len(choices[i].text) < 800 for i in (0, 6))
    assert result.receipt is not None
    assert 0 < (result.receipt.saved_tokens or 0) < 2 * 800


async def test_texts_that_wait_for_memory_need_not_begin(bench: Bench) -> None:
    """There is room for one at a time; two votes of three decide."""
    texts = (thinking(90, "1"), thinking(90, "1"), thinking(90, "2"))
    result = await voted(bench, *texts, max_tokens=120, kv_tokens=150)
    assert result.vote is not None
    assert (result.vote.answer, result.vote.cancelled) == ("1", [2])
    assert [c.text for c in result.choices or ()] == [texts[0], texts[1], ""]
    assert result.receipt is not None
    assert result.receipt.saved_tokens == len(texts[0]) + 1


async def test_a_text_that_is_cut_has_no_vote(bench: Bench) -> None:
    result = await voted(bench, thinking(9, "1") + " and on", thinking(5, "2"), max_tokens=18)
    assert result.vote is not None
    assert [(a.answer, a.texts) for a in result.vote.answers] == [("2", [1])]
    assert [c.finish_reason for c in result.choices or ()] == [
        FinishReason.LENGTH,
        FinishReason.STOP,
    ]


async def test_without_any_answer_the_first_text_is_the_job_s(bench: Bench) -> None:
    result = await voted(bench, "none here", "nor here")
    assert (result.status, result.text) == (JobStatus.SUCCEEDED, "none here")
    assert result.vote is not None
    assert (result.vote.answer, result.vote.winner, result.vote.answers) == (None, None, [])


async def test_a_cancelled_job_has_no_vote_to_show_for_it(bench: Bench) -> None:
    async with bench.worker(writing(thinking(5, "1"), thinking(800, "1"), thinking(800, "2"))):
        id = await bench.submit("p", n=3, vote="boxed", seed=SEED, max_tokens=900)
        await until(lambda: is_running(bench, id))
        await bench.queue.cancel(id)
        assert await bench.ended(id) is JobStatus.CANCELLED
    result = (await bench.results.get(id)).result
    assert result is not None
    assert result.finish_reason is FinishReason.CANCELLED


async def test_a_job_of_which_every_text_fails_fails(bench: Bench) -> None:
    async with bench.worker(SimulatedConfig(PACED, SimulatedFaults(error_marker="[bad]"))):
        id = await bench.submit("[bad]", n=3, vote="exact")
        assert await bench.ended(id) is JobStatus.FAILED
