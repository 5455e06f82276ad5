"""Which errors of rows are tried again: those that another attempt may not meet, and no others."""

from dataclasses import replace

import pytest

from millpond.messages import EventType, JobStatus
from millpond.queue.job_queue import JobQueue, QueueOptions
from tests.integration.test_worker import PACED, Bench, bench
from worker.engines.simulated import SimulatedConfig, SimulatedFaults

__all__ = ["bench"]  # a fixture

FLAKY = SimulatedFaults(error_marker="[bad]", flaky_marker="[flaky]")


@pytest.fixture
def options() -> QueueOptions:
    return QueueOptions(lease_s=5.0, retry_delay_s=0.01, max_attempts=2)


async def test_an_error_that_may_pass_is_tried_again(bench: Bench) -> None:
    async with bench.worker(SimulatedConfig(PACED, FLAKY)):
        id = await bench.submit("[flaky]")
        beside = await bench.submit("a good one")
        assert await bench.ended(id) is JobStatus.SUCCEEDED
        assert await bench.ended(beside) is JobStatus.SUCCEEDED
    assert (await bench.results.get(id)).attempts == 2
    assert (await bench.results.get(beside)).attempts == 1
    events = [event async for event in bench.results.subscribe(id)]
    started = [e.attempt for e in events if e.type is EventType.STARTED]
    assert started == [1, 2]
    assert [e.reason for e in events if e.type is EventType.RESET] == ["failed"]


async def test_the_last_attempts_error_is_the_result_and_a_dead_letter(
    bench: Bench, options: QueueOptions
) -> None:
    bench.queue = JobQueue(bench.queue._redis, "test", replace(options, max_attempts=1))
    async with bench.worker(SimulatedConfig(PACED, FLAKY)):
        id = await bench.submit("[flaky]", n=2)
        assert await bench.ended(id) is JobStatus.FAILED
    view = await bench.results.get(id)
    assert view.attempts == 1
    assert view.result is not None
    assert view.result.error is not None
    assert view.result.error.message == "the simulated engine stumbles"
    assert (await bench.results.queue_state()).dead == 1


async def test_an_error_that_will_not_pass_ends_the_job_at_once(bench: Bench) -> None:
    async with bench.worker(SimulatedConfig(PACED, FLAKY)):
        id = await bench.submit("[bad]")
        assert await bench.ended(id) is JobStatus.FAILED
    view = await bench.results.get(id)
    assert view.attempts == 1
    assert (await bench.results.queue_state()).dead == 0
