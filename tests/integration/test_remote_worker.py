"""The queue, a worker and an upstream with a mind of its own: every job ends once, and whole."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from millpond.errors import ModelLoadError
from millpond.local.server import RedisServer
from millpond.messages import EventType, JobRequest, JobResult, JobStatus, VoteKind
from millpond.queue.connection import connect
from millpond.queue.job_queue import JobQueue, QueueOptions
from millpond.queue.results import Results
from millpond.queue.subscriptions import Subscriptions
from millpond.settings import Settings
from tests.upstream import Behaviour, Upstream, text_for
from worker.assembly import prepare_folder, window_policy, worker_engine
from worker.worker import Worker, WorkerOptions

OUTPUT_TOKENS = 40


class Service:
    """A queue, and a worker as ``python -m worker`` would make it of these settings."""

    def __init__(self, redis_url: str, upstream: Upstream, key_file: Path) -> None:
        key_file.write_text("sesame\n")
        self.settings = Settings(
            engine="remote",
            redis_url=redis_url,
            remote_url=upstream.url,
            remote_route="chat",
            remote_api_key_file=key_file,
            slots=16,
            lease_s=1.0,
            heartbeat_s=0.3,
        )
        self.redis = connect(redis_url)
        self.subscriptions = Subscriptions(self.redis)
        self.queue = JobQueue(self.redis, "test", QueueOptions(lease_s=1.0, max_attempts=2))
        self.results = Results(self.redis, "test", self.subscriptions)

    @contextlib.asynccontextmanager
    async def worker(self) -> AsyncIterator["asyncio.Task[bool]"]:
        preset = self.settings.preset()
        tokenizer, build = worker_engine(
            self.settings, preset, prepare_folder(self.settings, preset)
        )
        options = WorkerOptions("w1", window_policy(self.settings), heartbeat_s=0.05, grace_s=5.0)
        worker = Worker(self.queue, build, tokenizer, preset, options)
        task = asyncio.create_task(worker.run())
        try:
            yield task
        finally:
            worker.stop()
            worker.stop()
            with contextlib.suppress(ModelLoadError):
                await task

    async def submit(self, prompt: str, max_tokens: int = OUTPUT_TOKENS) -> str:
        request = JobRequest(prompt=prompt, max_tokens=max_tokens, ignore_eos=True)
        return (await self.queue.submit(request)).id

    async def result(self, id: str) -> JobResult:
        result = (await self.results.wait(id, 20.0)).result
        assert result is not None
        return result


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream(api_key="sesame", max_open=5, token_delay_s=0.002) as running:
        yield running


@pytest.fixture
async def service(
    redis_server: RedisServer, upstream: Upstream, tmp_path: Path
) -> AsyncIterator[Service]:
    service = Service(redis_server.url, upstream, tmp_path / "key")
    yield service
    await service.subscriptions.close()
    await service.redis.aclose()


async def test_faults_of_the_upstream_are_no_faults_of_jobs(
    service: Service, upstream: Upstream
) -> None:
    probe = Behaviour()
    upstream.script += [probe, Behaviour(cut_after=9), Behaviour(status=500)]
    upstream.script += [Behaviour(junk_after=3), Behaviour(end_after=20), Behaviour(cut_after=0)]
    ids = [await service.submit(f"question {i}") for i in range(40)]
    async with service.worker():
        results = [await service.result(id) for id in ids]
        for id, result in zip(ids, results, strict=True):
            assert result.status is JobStatus.SUCCEEDED
            assert result.receipt is not None
            assert (result.receipt.attempt, result.receipt.engine) == (1, "remote")
            assert result.usage is not None
            assert result.usage.completion_tokens == OUTPUT_TOKENS
            events = [event async for event in service.results.subscribe(id)]
            deltas = [event.text for event in events if event.type is EventType.DELTA]
            assert "".join(deltas) == result.text
    assert upstream.most_open == 5
    expected = {body["messages"][-1]["content"]: text_for(body) for body in upstream.bodies}
    assert [r.text for r in results] == [expected[f"question {i}"] for i in range(40)]


async def test_an_upstream_that_restarts_under_load_loses_nothing(
    service: Service, upstream: Upstream
) -> None:
    async with service.worker():
        ids = [await service.submit(f"question {i}", 200) for i in range(12)]
        async with asyncio.timeout(10):
            while upstream.num_open < 5:
                await asyncio.sleep(0.005)
        await asyncio.to_thread(upstream.stop)
        await asyncio.sleep(2 * service.settings.lease_s)  # the leases outlive it
        await asyncio.to_thread(upstream.start)
        for id in ids:
            result = await service.result(id)
            assert result.status is JobStatus.SUCCEEDED
            assert result.usage is not None
            assert result.usage.completion_tokens == 200
            assert result.receipt is not None
            assert result.receipt.attempt == 1


async def test_cancelling_frees_the_upstream(service: Service, upstream: Upstream) -> None:
    async with service.worker():
        id = await service.submit("long", 100_000)
        async with asyncio.timeout(10):
            while upstream.num_open < 1 or len(upstream.bodies) < 2:
                await asyncio.sleep(0.005)
        await service.queue.cancel(id)
        assert (await service.result(id)).status is JobStatus.CANCELLED
        async with asyncio.timeout(10):
            while upstream.num_open:
                await asyncio.sleep(0.005)


async def test_a_vote_that_is_decided_frees_the_upstream(
    service: Service, upstream: Upstream
) -> None:
    """The third text would never end."""
    says_four = Behaviour(deltas=[{"content": "so "}, {"content": r"\boxed{4}"}])
    upstream.script += [Behaviour(), says_four, says_four, Behaviour(hang_after=3)]
    async with service.worker():
        request = JobRequest(prompt="2 + 2?", n=3, vote=VoteKind.BOXED, ignore_eos=True)
        result = await service.result((await service.queue.submit(request)).id)
        assert result.status is JobStatus.SUCCEEDED
        assert result.vote is not None
        assert (result.vote.answer, result.vote.answers[0].count) == ("4", 2)
        assert len(result.vote.cancelled) == 1
        async with asyncio.timeout(10):
            while upstream.num_open:
                await asyncio.sleep(0.005)


async def test_a_revoked_key_ends_the_worker_and_keeps_the_jobs(
    service: Service, upstream: Upstream
) -> None:
    async with service.worker() as task:
        ids = [await service.submit(f"question {i}", 500) for i in range(3)]
        async with asyncio.timeout(10):
            while upstream.num_open < 3:
                await asyncio.sleep(0.005)
        upstream.api_key = "another"
        ids += [await service.submit("one more", 500) for _ in range(2)]
        await asyncio.wait([task], timeout=20)
        with pytest.raises(ModelLoadError, match="remote_api_key"):
            task.result()
    for id in ids:
        assert (await service.results.get(id)).status is JobStatus.QUEUED
    upstream.api_key = "sesame"
    async with service.worker():
        for id in ids:
            assert (await service.result(id)).status is JobStatus.SUCCEEDED
