"""The simulation of shorter-first: its own bounds, without which its table would say nothing."""

import statistics
from itertools import pairwise

import pytest

from bench.lengths import KINDS, SLOTS, Job, Learnt, Oracle, heavy_tailed, run


def starts(jobs: list[Job], waits_ms: list[float]) -> list[float]:
    return [job.arrival_ms + wait for job, wait in zip(jobs, waits_ms, strict=True)]


@pytest.mark.parametrize("refills", [True, False])
def test_without_ageing_the_order_is_that_of_arrival(refills: bool) -> None:
    jobs = heavy_tailed(2_000, rate_per_s=20)
    found = run(jobs, Oracle(), 0.0, refills=refills)
    assert all(one <= other + 1e-6 for one, other in pairwise(starts(jobs, found.waits_ms)))


@pytest.mark.parametrize("ageing_ms", [1.0, 20.0])
def test_nobody_is_overtaken_by_one_that_came_too_late(ageing_ms: float) -> None:
    """Only by those that arrive within ageing x its own length: that is why no long job starves."""
    jobs = heavy_tailed(1_500, rate_per_s=30)
    began = starts(jobs, run(jobs, Oracle(), ageing_ms, refills=True).waits_ms)
    overtaken = 0
    for i, job in enumerate(jobs):
        for later, other in enumerate(jobs[i + 1 :], i + 1):
            if began[later] < began[i]:
                overtaken += 1
                assert other.arrival_ms - job.arrival_ms <= ageing_ms * job.tokens
    assert overtaken > 0


def test_the_mean_gains_and_every_job_is_served() -> None:
    jobs = heavy_tailed(4_000, rate_per_s=6)
    arrival = run(jobs, Learnt(), 0.0, refills=True)
    learnt = run(jobs, Learnt(), 20.0, refills=True)
    assert min(learnt.latencies_ms) > 0
    assert statistics.fmean(learnt.latencies_ms) < statistics.fmean(arrival.latencies_ms)


def test_a_static_batch_holds_its_slots_to_the_end() -> None:
    jobs = [Job(0.0, 0, tokens) for tokens in [1_000] + [1] * SLOTS]
    static = run(jobs, Oracle(), 0.0, refills=False)
    assert static.waits_ms == [0.0] * SLOTS + [20_000.0]
    assert max(run(jobs, Oracle(), 0.0, refills=True).waits_ms) == 20.0


def test_the_medians_are_learnt() -> None:
    learnt = Learnt()
    for job in heavy_tailed(5_000, rate_per_s=1):
        learnt.learn(job)
    for kind, (_, median) in enumerate(KINDS):
        assert learnt.predict(Job(0.0, kind, 1)) == pytest.approx(median, rel=0.35)
