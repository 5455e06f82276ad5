"""The worker around the simulated engine, against a real server."""

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from millpond.errors import QueueUnavailableError
from millpond.local.server import RedisServer
from millpond.messages import EventType, FinishReason, JobRequest, JobResult, JobStatus, choice_seed
from millpond.messages.worker_state import WorkerPhase
from millpond.models.presets import PRESETS
from millpond.models.tokenization import ByteTokenizer
from millpond.queue.claims import Claim, Commit
from millpond.queue.connection import connect
from millpond.queue.job_queue import JobQueue, QueueOptions
from millpond.queue.results import Results
from millpond.queue.submission import NewJob
from millpond.queue.subscriptions import Subscriptions
from worker.engines.base import Engine, EngineConfig, EngineNotReadyError
from worker.engines.simulated import (
    SimulatedConfig,
    SimulatedCosts,
    SimulatedEngine,
    SimulatedFaults,
)
from worker.intake import INLINE_BYTES
from worker.window import WindowPolicy
from worker.worker import EngineFailedError, Worker, WorkerOptions

SLOTS = 8
# Slow enough to be caught running, fast enough for a test.
PACED = SimulatedCosts(prefill_s_per_token=0.0, decode_s_per_step=0.002, decode_s_per_row=0.0)


async def until(condition: Callable[[], Awaitable[Any]], timeout_s: float = 10.0) -> Any:
    """Poll until the condition holds; its value."""
    async with asyncio.timeout(timeout_s):
        while not (value := await condition()):
            await asyncio.sleep(0.005)
        return value


@dataclass
class Bench:
    """One queue on one server, and workers on demand."""

    server: RedisServer
    queue: JobQueue
    results: Results

    @contextlib.asynccontextmanager
    async def worker(
        self,
        simulated: SimulatedConfig | None = None,
        *,
        id: str = "w1",
        rebuilt: SimulatedConfig | None = None,
        slots: int = SLOTS,
        kv_tokens: int | None = None,
        options: dict[str, Any] | None = None,
        tokenizer: ByteTokenizer | None = None,
    ) -> AsyncIterator[tuple[Worker, "asyncio.Task[bool]"]]:
        preset = PRESETS["simulated"]
        tokenizer = tokenizer or ByteTokenizer()
        config = EngineConfig("simulated", None, preset, slots=slots, kv_tokens=kv_tokens)
        simulated = simulated or SimulatedConfig(costs=PACED)
        builds = itertools.chain([simulated], itertools.repeat(rebuilt or simulated))
        worker = Worker(
            self.queue,
            lambda: SimulatedEngine(config, tokenizer, next(builds)),
            tokenizer,
            preset,
            replace(
                WorkerOptions(
                    id, WindowPolicy.hybrid(2, slots, 0.02), heartbeat_s=0.05, grace_s=5.0
                ),
                **(options or {}),
            ),
        )
        task = asyncio.create_task(worker.run())
        try:
            yield worker, task
        finally:
            worker.stop()
            worker.stop()
            with contextlib.suppress(EngineFailedError):
                await task

    async def submit(self, prompt: str = "hello", **fields: Any) -> str:
        fields.setdefault("max_tokens", 20)
        submission = await self.queue.submit(JobRequest(prompt=prompt, **fields))
        return submission.id

    async def ended(self, id: str) -> JobStatus:
        view = await self.results.wait(id, 10.0)
        return view.status

    async def status(self, id: str) -> JobStatus:
        return (await self.results.get(id)).status


@pytest.fixture
def options() -> QueueOptions:
    return QueueOptions(lease_s=0.5, retry_delay_s=0.01, max_attempts=3)


@pytest.fixture
async def bench(redis_server: RedisServer, options: QueueOptions) -> AsyncIterator[Bench]:
    redis = connect(redis_server.url)
    subscriptions = Subscriptions(redis)
    yield Bench(
        redis_server, JobQueue(redis, "test", options), Results(redis, "test", subscriptions)
    )
    await subscriptions.close()
    await redis.aclose()


async def is_running(bench: Bench, id: str) -> bool:
    """Whether it has written something."""
    async for event in bench.results.subscribe(id):
        if event.type is EventType.DELTA:
            return True
    return False


async def is_idle(bench: Bench) -> bool:
    [worker] = (await bench.results.queue_state()).workers
    return worker.state.rows == 0


async def test_results_have_text_usage_and_a_receipt(bench: Bench) -> None:
    ids = [await bench.submit(f"question {i}", metadata={"n": str(i)}) for i in range(20)]
    async with bench.worker():
        for i, id in enumerate(ids):
            view = await bench.results.wait(id, 10.0)
            assert view.status is JobStatus.SUCCEEDED
            result = view.result
            assert result is not None
            assert result.text
            assert result.usage is not None
            assert result.usage.completion_tokens <= 20
            assert result.metadata == {"n": str(i)}
            receipt = result.receipt
            assert receipt is not None
            assert (receipt.attempt, receipt.worker) == (1, "w1")
            assert (receipt.engine, receipt.backend) == ("simulated", "simulated")
            assert 1 <= receipt.batch_rows <= SLOTS
            assert 1 <= receipt.window_jobs <= SLOTS
            assert receipt.claimed_ms >= view.created_ms
            assert receipt.run_ms >= receipt.first_token_ms >= 0
    state = await bench.results.queue_state()
    assert state.done[JobStatus.SUCCEEDED] == 20
    assert (state.depth, state.running, state.workers) == (0, 0, [])


async def test_a_result_tells_token_ids_and_logprobs_when_asked(bench: Bench) -> None:
    asking = {"return_token_ids": True, "return_prompt_token_ids": True, "logprobs": 1}
    told, plain = await bench.submit("a", raw=True, **asking), await bench.submit("a", raw=True)
    async with bench.worker():
        result = (await bench.results.wait(told, 10.0)).result
        silent = (await bench.results.wait(plain, 10.0)).result
    assert result is not None
    assert result.prompt_token_ids == [97]
    assert result.token_ids
    assert result.logprobs is not None
    assert [token.token_id for token in result.logprobs] == result.token_ids
    assert "".join(token.token for token in result.logprobs).removesuffix("<end>") == result.text
    for token in result.logprobs:
        assert token.logprob == 0
        assert [other.token_id for other in token.top] == [token.token_id]
    assert silent is not None
    assert (silent.token_ids, silent.prompt_token_ids, silent.logprobs) == (None, None, None)


async def texts_of(bench: Bench, id: str) -> list[str]:
    result = (await bench.results.wait(id, 10.0)).result
    assert result is not None
    assert result.choices is not None
    assert [choice.index for choice in result.choices] == list(range(len(result.choices)))
    return [choice.text for choice in result.choices]


async def test_n_texts_are_those_of_n_jobs_with_their_seeds(bench: Bench) -> None:
    fields = {"seed": 5, "temperature": 1.0, "return_token_ids": True}
    several = await bench.submit("same", n=3, **fields)
    alone = [
        await bench.submit("same", **fields | {"seed": choice_seed(5, index)}) for index in range(3)
    ]
    async with bench.worker():
        texts = await texts_of(bench, several)
        ends = [(await bench.results.wait(id, 10.0)).result for id in alone]
        result = (await bench.results.get(several)).result
    assert len(set(texts)) == 3
    assert texts == [end.text for end in ends if end is not None]
    assert result is not None
    assert (result.text, result.status) == (texts[0], JobStatus.SUCCEEDED)
    assert result.usage is not None
    assert result.usage.completion_tokens == sum(
        len(c.token_ids or ()) for c in result.choices or ()
    )
    assert all(end is not None and end.choices is None for end in ends)
    assert (await bench.results.queue_state()).done[JobStatus.SUCCEEDED] == 4


async def test_each_of_n_texts_streams_by_its_index(bench: Bench) -> None:
    id = await bench.submit("tell me more", n=2, temperature=1.0, max_tokens=60)
    streamed = {0: "", 1: ""}
    async with bench.worker():
        async for event in bench.results.subscribe(id):
            if event.type is EventType.DELTA:
                assert event.index is not None
                assert event.offset == len(streamed[event.index])
                streamed[event.index] += event.text
        assert list(streamed.values()) == await texts_of(bench, id)


async def test_cancelling_a_job_ends_all_its_texts(bench: Bench) -> None:
    id = await bench.submit("long", n=3, max_tokens=20_000, ignore_eos=True)
    async with bench.worker():
        await until(lambda: is_running(bench, id))
        await bench.queue.cancel(id)
        assert await bench.ended(id) is JobStatus.CANCELLED
        result = (await bench.results.get(id)).result
        assert result is not None
        assert [c.finish_reason for c in result.choices or ()] == [FinishReason.CANCELLED] * 3
        await until(lambda: is_idle(bench))
        assert len(await texts_of(bench, await bench.submit("next", n=SLOTS))) == SLOTS


async def test_n_rows_wait_for_n_slots_and_are_not_overtaken(bench: Bench) -> None:
    """With a stream of small jobs behind it that would always find the freed slot first."""
    long = await bench.submit("long", max_tokens=400, ignore_eos=True)
    async with bench.worker():
        await until(lambda: is_running(bench, long))
        wide = await bench.submit("wide", n=SLOTS, max_tokens=5)
        small = [await bench.submit(f"s{i}", max_tokens=50) for i in range(3 * SLOTS)]
        assert await bench.ended(wide) is JobStatus.SUCCEEDED
        for id in small:
            assert await bench.ended(id) is JobStatus.SUCCEEDED
        assert await bench.ended(long) is JobStatus.SUCCEEDED


async def test_more_texts_than_slots_are_refused(bench: Bench) -> None:
    id = await bench.submit("many", n=SLOTS + 1)
    async with bench.worker():
        assert await bench.ended(id) is JobStatus.FAILED
    result = (await bench.results.get(id)).result
    assert result is not None
    assert result.error is not None
    assert (result.error.code, f"{SLOTS} slots" in result.error.message) == (
        "invalid_request",
        True,
    )


async def test_a_refused_row_refuses_its_job_once(bench: Bench) -> None:
    faults = SimulatedFaults(reject_marker="[no]", error_marker="[bad]")
    async with bench.worker(SimulatedConfig(PACED, faults)):
        refused, failed = await bench.submit("[no]", n=3), await bench.submit("[bad]", n=2)
        assert await bench.ended(refused) is JobStatus.FAILED
        assert await bench.ended(failed) is JobStatus.FAILED
    errors = [(await bench.results.get(id)).result for id in (refused, failed)]
    assert [r.error.code for r in errors if r and r.error] == [
        "invalid_request",
        "generation_failed",
    ]


async def test_the_same_job_gives_the_same_text_in_any_company(bench: Bench) -> None:
    async with bench.worker():
        alone = await bench.submit("same", seed=7)
        await bench.ended(alone)
        crowd = [await bench.submit(f"other {i}") for i in range(10)]
        among = await bench.submit("same", seed=7)
        texts = [(await bench.results.wait(id, 10.0)).result for id in (alone, among)]
        assert texts[0] is not None
        assert texts[1] is not None
        assert texts[0].text == texts[1].text
        for id in crowd:
            assert await bench.ended(id) is JobStatus.SUCCEEDED


async def test_streamed_text_adds_up(bench: Bench) -> None:
    async with bench.worker():
        id = await bench.submit(max_tokens=200, ignore_eos=True)
        events = [event async for event in bench.results.subscribe(id)]
    assert [e.type for e in events[:1]] == [EventType.STARTED]
    assert events[-1].type is EventType.FINISHED
    assert events[-1].result is not None
    deltas = [e for e in events if e.type is EventType.DELTA]
    assert len(deltas) > 1
    assert "".join(e.text for e in deltas) == events[-1].result.text
    offset = 0
    for delta in deltas:
        assert delta.offset == offset
        offset += len(delta.text)


async def test_a_short_row_does_not_wait_for_a_long_one(bench: Bench) -> None:
    async with bench.worker():
        long = await bench.submit("long", max_tokens=2_000, ignore_eos=True)
        short = await bench.submit("short", max_tokens=3, ignore_eos=True)
        assert await bench.ended(short) is JobStatus.SUCCEEDED
        assert await bench.status(long) is JobStatus.RUNNING
        # The freed slot is given to the next job while the long one goes on.
        later = await bench.submit("later", max_tokens=3, ignore_eos=True)
        assert await bench.ended(later) is JobStatus.SUCCEEDED
        assert await bench.status(long) is JobStatus.RUNNING


async def test_cancelling_a_running_job_frees_its_slot(bench: Bench) -> None:
    async with bench.worker():
        ids = [await bench.submit(max_tokens=30_000, ignore_eos=True) for _ in range(SLOTS)]
        for id in ids:
            await until(lambda id=id: is_status(bench, id, JobStatus.RUNNING))  # type: ignore[misc]
        waiting = await bench.submit("next", max_tokens=3)
        await bench.queue.cancel(ids[3])
        assert await bench.ended(ids[3]) is JobStatus.CANCELLED
        result = (await bench.results.get(ids[3])).result
        assert result is not None
        assert result.finish_reason is FinishReason.CANCELLED
        assert result.text, "what was written before the cancel is kept"
        assert await bench.ended(waiting) is JobStatus.SUCCEEDED


async def test_a_deadline_ends_a_running_job(bench: Bench) -> None:
    async with bench.worker():
        id = await bench.submit(max_tokens=30_000, ignore_eos=True, deadline_s=0.2)
        assert await bench.ended(id) is JobStatus.EXPIRED


async def num_with(bench: Bench, ids: list[str], status: JobStatus, at_least: int) -> bool:
    return sum([await bench.status(id) is status for id in ids]) >= at_least


async def is_status(bench: Bench, id: str, status: JobStatus) -> bool:
    return await bench.status(id) is status


async def test_bad_jobs_fail_alone(bench: Bench) -> None:
    bad = JobRequest(token_ids=[999], max_tokens=5)
    [submission] = await bench.queue.submit_many([NewJob(bad)])
    assert not isinstance(submission, Exception)
    too_long = await bench.submit("x" * 40_000)
    good = await bench.submit("fine")
    async with bench.worker():
        for id, code in ((submission.id, "invalid_request"), (too_long, "prompt_too_long")):
            view = await bench.results.wait(id, 10.0)
            assert view.status is JobStatus.FAILED
            assert view.result is not None
            assert view.result.error is not None
            assert view.result.error.code == code
        assert await bench.ended(good) is JobStatus.SUCCEEDED


async def test_an_unreadable_stored_request_fails_alone(bench: Bench) -> None:
    id = await bench.submit("fine")
    redis = connect(bench.server.url)
    await redis.set(bench.queue.keys.body(id), b'{"v":99}')
    await redis.aclose()
    async with bench.worker():
        view = await bench.results.wait(id, 10.0)
    assert view.status is JobStatus.FAILED
    assert view.result is not None
    assert view.result.error is not None
    assert "version" in view.result.error.message


async def test_stop_finishes_what_fits_in_the_grace_time(bench: Bench) -> None:
    async with bench.worker() as (worker, task):
        id = await bench.submit(max_tokens=100, ignore_eos=True)
        await until(lambda: is_running(bench, id))
        worker.stop()
        assert await task
    assert await bench.status(id) is JobStatus.SUCCEEDED


async def test_stop_releases_the_rest_unspent(bench: Bench) -> None:
    async with bench.worker(options={"grace_s": 0.05}) as (worker, task):
        id = await bench.submit(max_tokens=30_000, ignore_eos=True)
        await until(lambda: is_status(bench, id, JobStatus.RUNNING))
        worker.stop()
        assert await task
    view = await bench.results.get(id)
    assert view.status is JobStatus.QUEUED
    assert view.attempts == 0


async def test_stop_gives_back_what_was_claimed_ahead(bench: Bench) -> None:
    ids = [await bench.submit(f"q{i}", max_tokens=20 + i) for i in range(150)]
    async with bench.worker(slots=48) as (worker, task):
        await until(lambda: num_with(bench, ids, JobStatus.SUCCEEDED, at_least=30))
        worker.stop()
        assert await task
    views = [await bench.results.get(id) for id in ids]
    left = [view for view in views if view.status is JobStatus.QUEUED]
    assert len(left) >= 150 - 30 - 3 * 48
    assert all(view.attempts == 0 for view in left)
    assert {v.status for v in views} <= {JobStatus.SUCCEEDED, JobStatus.QUEUED}


async def test_an_engine_that_breaks_under_a_backlog_costs_nothing(bench: Bench) -> None:
    breaks = SimulatedConfig(costs=PACED, faults=SimulatedFaults(raise_at_step=60))
    ids = [await bench.submit(f"q{i}", max_tokens=20 + i) for i in range(150)]
    async with bench.worker(breaks, rebuilt=SimulatedConfig(costs=PACED), slots=48):
        for id in ids:
            view = await bench.results.wait(id, 20.0)
            assert view.status is JobStatus.SUCCEEDED
            assert view.attempts == 1


async def test_a_second_stop_releases_at_once(bench: Bench) -> None:
    async with bench.worker(options={"grace_s": 600.0}) as (worker, task):
        id = await bench.submit(max_tokens=30_000, ignore_eos=True)
        await until(lambda: is_status(bench, id, JobStatus.RUNNING))
        worker.stop()
        worker.stop()
        assert await asyncio.wait_for(task, 5.0)
    assert await bench.status(id) is JobStatus.QUEUED


async def test_an_idle_worker_stops_at_once(bench: Bench) -> None:
    async with bench.worker(options={"grace_s": 600.0}) as (worker, task):
        await until(lambda: asyncio.sleep(0, worker.ready))
        worker.stop()
        assert await asyncio.wait_for(task, 5.0)


class PatientQueue(JobQueue):
    """Counts the results that could not be written."""

    writes_failed = 0

    async def complete(self, results: Sequence[tuple[int, JobResult]]) -> list[Commit]:
        try:
            return await super().complete(results)
        except QueueUnavailableError:
            self.writes_failed += 1
            raise


class DeafQueue(JobQueue):
    """Its claims are made, but their answers are lost."""

    deaf = True

    async def claim(self, worker: str, count: int, **rest: Any) -> Claim:
        claim = await super().claim(worker, count, **rest)
        if self.deaf and claim.jobs:
            raise QueueUnavailableError("the answer is lost")
        return claim


async def test_stop_releases_what_was_claimed_unheard(bench: Bench) -> None:
    queue = DeafQueue(connect(bench.server.url), "test", bench.queue.options)
    id = await bench.submit()
    async with replace(bench, queue=queue).worker() as (worker, task):
        await until(lambda: is_status(bench, id, JobStatus.RUNNING))
        worker.stop()
        queue.deaf = False
        assert await task
    view = await bench.results.get(id)
    assert (view.status, view.attempts) == (JobStatus.QUEUED, 0)
    await queue._redis.aclose()


async def test_an_engine_that_breaks_once_is_built_again(bench: Bench) -> None:
    breaks = SimulatedConfig(costs=PACED, faults=SimulatedFaults(raise_at_step=5))
    async with bench.worker(breaks, rebuilt=SimulatedConfig(costs=PACED)):
        ids = [await bench.submit(f"q{i}") for i in range(4)]
        for id in ids:
            view = await bench.results.wait(id, 10.0)
            assert view.status is JobStatus.SUCCEEDED
            assert view.attempts == 1, "nobody knows whose fault it was"


async def test_an_engine_that_always_breaks_ends_the_worker(bench: Bench) -> None:
    broken = SimulatedConfig(costs=PACED, faults=SimulatedFaults(raise_at_step=1))
    id = await bench.submit()
    async with bench.worker(broken) as (_, task):
        with pytest.raises(EngineFailedError, match="the engine broke"):
            await task
    view = await bench.results.get(id)
    assert view.status is JobStatus.FAILED
    assert (await bench.results.queue_state()).dead == 1


def waiting_engine(not_ready: int) -> Callable[[], Engine]:
    """Builds an engine after having failed so often for want of what it needs."""
    failures = iter(range(not_ready))

    def build() -> Engine:
        if next(failures, None) is not None:
            raise EngineNotReadyError("its upstream is away")
        config = EngineConfig("simulated", None, PRESETS["simulated"], slots=SLOTS)
        return SimulatedEngine(config, ByteTokenizer(), SimulatedConfig(costs=PACED))

    return build


def worker_of(bench: Bench, build: Callable[[], Engine], turn_limit_s: float = 30.0) -> Worker:
    options = WorkerOptions(
        "w1", WindowPolicy.hybrid(2, SLOTS, 0.02), heartbeat_s=0.05, turn_limit_s=turn_limit_s
    )
    return Worker(bench.queue, build, ByteTokenizer(), PRESETS["simulated"], options)


async def test_an_engine_that_is_not_ready_yet_is_built_again_until_it_is(bench: Bench) -> None:
    worker = worker_of(bench, waiting_engine(2))
    task = asyncio.create_task(worker.run())
    id = await bench.submit()

    async def registered() -> bool:
        state = await bench.results.queue_state()
        return [w.state.state for w in state.workers] == [WorkerPhase.LOADING]

    await until(registered)
    assert not worker.ready
    assert await bench.ended(id) is JobStatus.SUCCEEDED
    worker.stop()
    assert await task


async def test_a_worker_that_waits_for_its_engine_stops_at_once(bench: Bench) -> None:
    worker = worker_of(bench, waiting_engine(1000))
    task = asyncio.create_task(worker.run())
    id = await bench.submit()
    await until(lambda: asyncio.sleep(0, not task.done()))
    worker.stop()
    assert await asyncio.wait_for(task, 5.0)
    assert await bench.status(id) is JobStatus.QUEUED


async def test_a_blocked_engine_thread_costs_no_lease(bench: Bench) -> None:
    """The engine hangs for three leases; a second worker must not get the job."""
    hang = SimulatedConfig(costs=PACED, faults=SimulatedFaults(hang_marker="hang", hang_s=1.5))
    async with bench.worker(hang, id="w1"):
        id = await bench.submit("hang")
        await until(lambda: is_status(bench, id, JobStatus.RUNNING))
        async with bench.worker(id="w2"):
            view = await bench.results.wait(id, 10.0)
    assert view.status is JobStatus.SUCCEEDED
    assert (view.attempts, view.worker) == (1, "w1")


async def test_a_hung_engine_gives_its_jobs_back_and_ends_the_worker(bench: Bench) -> None:
    """Its leases were renewed for ever; a cancel and a deadline waited for it, and so did the rest."""
    hang = SimulatedConfig(costs=PACED, faults=SimulatedFaults(hang_marker="hang", hang_s=4.0))
    async with bench.worker(hang, id="w1", options={"turn_limit_s": 0.05}) as (_, task):
        cancelled = await bench.submit("long", max_tokens=30_000, ignore_eos=True)
        late = await bench.submit("long", max_tokens=30_000, ignore_eos=True, deadline_s=0.3)
        innocent = await bench.submit("innocent", max_tokens=400, ignore_eos=True)
        await until(lambda: is_running(bench, innocent))
        hung = await bench.submit("hang")
        await until(lambda: is_status(bench, hung, JobStatus.RUNNING))
        await bench.queue.cancel(cancelled)
        assert await asyncio.wait_for(task, 3.5) is False
        assert await bench.ended(cancelled) is JobStatus.CANCELLED
        assert await bench.ended(late) is JobStatus.EXPIRED
        [worker] = (await bench.results.queue_state()).workers
        assert worker.state.state is WorkerPhase.HUNG
        async with bench.worker(id="w2"):
            view = await bench.results.wait(innocent, 10.0)
            assert (view.status, view.worker, view.attempts) == (JobStatus.SUCCEEDED, "w2", 1)
            assert await bench.ended(hung) is JobStatus.SUCCEEDED


async def test_an_engine_that_never_loads_ends_the_worker(bench: Bench) -> None:
    come_back = threading.Event()

    def build() -> Engine:
        come_back.wait(10)
        raise EngineNotReadyError("too late")

    worker = worker_of(bench, build, turn_limit_s=0.01)
    assert await asyncio.wait_for(worker.run(), 5) is False
    come_back.set()


class SlowTokenizer(ByteTokenizer):
    """Takes longer for a long prompt than a lease lasts."""

    def encode(self, text: str) -> list[int]:
        if len(text) > INLINE_BYTES:
            time.sleep(0.7)
        return super().encode(text)


async def test_slow_tokenizing_costs_no_lease_and_holds_up_no_row(bench: Bench) -> None:
    """A claim was renewed only once all of it was tokenized, and no step was taken meanwhile."""
    async with bench.worker(tokenizer=SlowTokenizer(), options={"heartbeat_s": 0.1}):
        running = await bench.submit(max_tokens=200, ignore_eos=True)
        await until(lambda: is_running(bench, running))
        long = [await bench.submit("x" * (INLINE_BYTES + 1 + i)) for i in range(2)]
        await until(lambda: is_status(bench, long[-1], JobStatus.RUNNING))
        assert await bench.ended(running) is JobStatus.SUCCEEDED
        assert not (await bench.results.get(long[-1])).status.terminal
        for id in long:
            view = await bench.results.wait(id, 10.0)
            assert (view.status, view.attempts) == (JobStatus.SUCCEEDED, 1)
            events = [event.type async for event in bench.results.subscribe(id)]
            assert EventType.RESET not in events


async def test_a_server_restart_loses_nothing(bench: Bench) -> None:
    async with bench.worker():
        ids = [await bench.submit(f"q{i}", max_tokens=200, ignore_eos=True) for i in range(30)]
        await until(lambda: is_status(bench, ids[0], JobStatus.RUNNING))
        await bench.server.stop()
        await bench.server.start()
        for id in ids:
            assert await bench.ended(id) is JobStatus.SUCCEEDED


async def test_what_ends_while_the_server_is_away_is_stored_when_it_is_back(bench: Bench) -> None:
    """By the worker that has it: the lease is so long that nobody else could run it meanwhile."""
    queue = PatientQueue(bench.queue._redis, "test", replace(bench.queue.options, lease_s=60.0))
    async with replace(bench, queue=queue).worker():
        id = await bench.submit(max_tokens=200, ignore_eos=True, stream=False)
        await until(lambda: is_status(bench, id, JobStatus.RUNNING))
        await bench.server.stop()
        await until(lambda: asyncio.sleep(0, queue.writes_failed))
        await bench.server.start()
        assert await bench.ended(id) is JobStatus.SUCCEEDED


async def test_a_lost_row_gives_its_slot_back(bench: Bench) -> None:
    async def has_rows(number: int) -> bool:
        [worker] = (await bench.results.queue_state()).workers
        return int(worker.state.rows) == number

    async with bench.worker():
        id = await bench.submit(max_tokens=30_000, ignore_eos=True)
        await until(lambda: is_status(bench, id, JobStatus.RUNNING))
        await until(lambda: has_rows(1))
        fence = await bench.queue._redis.hget(bench.queue.keys.job(id), "fence")
        assert await bench.queue.release([(id, int(fence))]) == 1
        await bench.queue.cancel(id)
        await until(lambda: has_rows(0))


async def test_two_workers_share_without_doubling(bench: Bench) -> None:
    async with bench.worker(id="w1"), bench.worker(id="w2"):
        ids = [await bench.submit(f"q{i}", max_tokens=30) for i in range(100)]
        views = [await bench.results.wait(id, 20.0) for id in ids]
    assert {v.status for v in views} == {JobStatus.SUCCEEDED}
    assert {v.attempts for v in views} == {1}
    assert {v.worker for v in views} == {"w1", "w2"}


async def test_a_worker_whose_writing_breaks_ends_instead_of_holding_its_jobs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leases were renewed for ever by a worker whose Committer had died of an unforeseen error."""

    async def broken(results: Any) -> Any:
        raise ZeroDivisionError("unforeseen")

    id = await bench.submit(max_tokens=3)
    with monkeypatch.context() as patch:
        patch.setattr(bench.queue, "complete", broken)
        with contextlib.suppress(ZeroDivisionError):
            async with bench.worker() as (_, task):
                await asyncio.wait([task], timeout=10)
        assert isinstance(task.exception(), ZeroDivisionError)

    async with bench.worker(id="w2"):
        assert await bench.ended(id) is JobStatus.SUCCEEDED
