"""``python -m bench.lengths``: what shorter-first with ageing gains over the order of arrival.

A simulation, without Redis, engine or clock: the same on every machine, seconds to run. Outputs are
heavy-tailed and come in bursts; a row takes one step a token, whoever else runs. An engine either
fills its slots only when all rows have ended (static) or each slot at once (refilling).
"""

import argparse
import heapq
import math
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from bench.measure import percentile

SLOTS = 32
STEP_MS = 20.0
JOBS = 30_000
# Kinds of prompt that the predictor can tell apart: how often, median tokens of output. The spread
# within each is that of a log-normal; beyond LONGEST the output is cut.
KINDS = ((0.45, 40), (0.30, 150), (0.20, 600), (0.05, 3_000))
SPREAD = 0.7
LONGEST = 16_000
LOAD = 0.85  # of what the engine can do in the order of arrival
BURST_S, CALM_S, BURST_TIMES = 120.0, 480.0, 2.5
SHORT_TOKENS, LONG_TOKENS = 600, 4_000
AGEINGS_MS = (0.0, 5.0, 20.0, 100.0)


@dataclass(frozen=True, slots=True)
class Job:
    arrival_ms: float
    kind: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """``waits_ms`` until a slot and ``latencies_ms`` until the end, in the order of the jobs."""

    waits_ms: list[float]
    latencies_ms: list[float]


class Learnt:
    """The median of each kind, as `lengths.lua` learns it from the jobs that have ended."""

    def __init__(self) -> None:
        self._jobs = [0] * len(KINDS)
        self._powers = [0.0] * len(KINDS)

    def predict(self, job: Job) -> float:
        return 2 ** self._powers[job.kind] if self._jobs[job.kind] >= 20 else 0.0

    def learn(self, job: Job) -> None:
        self._jobs[job.kind] += 1
        size = math.log2(job.tokens)
        if self._jobs[job.kind] == 1:
            self._powers[job.kind] = size
            return
        half_step = max(0.05, 2 / self._jobs[job.kind] ** 0.7) / 2
        away = size - self._powers[job.kind]
        self._powers[job.kind] += max(-half_step, min(half_step, away))


class Oracle:
    """Knows what will be written."""

    def predict(self, job: Job) -> float:
        return job.tokens

    def learn(self, job: Job) -> None:
        """There is nothing left to learn."""


def heavy_tailed(number: int, rate_per_s: float, seed: int = 1) -> list[Job]:
    """Jobs in the order of their arrival: a Poisson process whose rate goes up and down."""
    chance = random.Random(seed)
    cycle_s = BURST_S + CALM_S
    calm = cycle_s / (CALM_S + BURST_TIMES * BURST_S)
    now_s, jobs = 0.0, []
    shares = [share for share, _ in KINDS]
    for _ in range(number):
        times = calm * (BURST_TIMES if now_s % cycle_s < BURST_S else 1.0)
        now_s += chance.expovariate(rate_per_s * times)
        [kind] = chance.choices(range(len(KINDS)), shares)
        tokens = round(chance.lognormvariate(math.log(KINDS[kind][1]), SPREAD))
        jobs.append(Job(now_s * 1000, kind, min(LONGEST, max(1, tokens))))
    return jobs


def run(
    jobs: Sequence[Job],
    predictor: Learnt | Oracle,
    ageing_ms: float,
    *,
    refills: bool,
    slots: int = SLOTS,
) -> Outcome:
    """Serve all jobs, those with the least arrival + ``ageing_ms`` x predicted tokens first."""
    waits, latencies = [0.0] * len(jobs), [0.0] * len(jobs)
    waiting: list[tuple[float, int]] = []
    ends: list[tuple[float, int]] = []  # (when, job) of the rows that run
    now, coming = 0.0, 0
    while coming < len(jobs) or waiting or ends:
        while coming < len(jobs) and jobs[coming].arrival_ms <= now:
            job = jobs[coming]
            score = job.arrival_ms + ageing_ms * predictor.predict(job)
            heapq.heappush(waiting, (score, coming))
            coming += 1
        filling = refills or not ends
        while filling and waiting and len(ends) < slots:
            _, i = heapq.heappop(waiting)
            waits[i] = now - jobs[i].arrival_ms
            heapq.heappush(ends, (now + jobs[i].tokens * STEP_MS, i))
        times = [ends[0][0]] if ends else []
        times += [jobs[coming].arrival_ms] if coming < len(jobs) else []
        now = min(times, default=now)
        while ends and ends[0][0] <= now:
            _, i = heapq.heappop(ends)
            latencies[i] = now - jobs[i].arrival_ms
            predictor.learn(jobs[i])
    return Outcome(waits, latencies)


def most_per_s(*, refills: bool) -> float:
    """Jobs a second that the engine can do in the order of arrival."""
    jobs = heavy_tailed(5_000, rate_per_s=1e6, seed=2)
    last_ms = max(run(jobs, Oracle(), 0.0, refills=refills).latencies_ms)
    return len(jobs) / last_ms * 1000


def table(number: int) -> Table:
    table = Table(title=f"Shorter first, with ageing: {number:,} jobs, latency in seconds")
    table.add_column("engine")
    table.add_column("order")
    for name in ("mean", "p50", "p99", "p99 of short", "longest wait", "mean wait of long"):
        table.add_column(name, justify="right")
    for engine, refills in (("static", False), ("refilling", True)):
        jobs = heavy_tailed(number, LOAD * most_per_s(refills=refills))
        rows: list[tuple[str, Callable[[], Learnt | Oracle], float]] = [
            ("arrival", Learnt, 0.0),
            *((f"learnt, {ms:g} ms a token", Learnt, ms) for ms in AGEINGS_MS[1:]),
            *((f"oracle, {ms:g} ms a token", Oracle, ms) for ms in AGEINGS_MS[1:]),
            ("shortest first, never ageing", Oracle, 1e9),
        ]
        for order, predictor, ageing_ms in rows:
            found = run(jobs, predictor(), ageing_ms, refills=refills)
            table.add_row(engine, order, *figures(jobs, found))
        table.add_section()
    return table


def figures(jobs: Sequence[Job], found: Outcome) -> list[str]:
    long = [w for j, w in zip(jobs, found.waits_ms, strict=True) if j.tokens >= LONG_TOKENS]
    short = [ms for j, ms in zip(jobs, found.latencies_ms, strict=True) if j.tokens <= SHORT_TOKENS]
    values = (
        statistics.fmean(found.latencies_ms),
        statistics.median(found.latencies_ms),
        percentile(found.latencies_ms, 0.99),
        percentile(short, 0.99),
        max(found.waits_ms),
        statistics.fmean(long),
    )
    return [f"{value / 1000:,.1f}" for value in values]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.lengths", description=__doc__)
    parser.add_argument("--jobs", type=int, default=JOBS, help="how many (%(default)s)")
    options = parser.parse_args()
    Console(width=None if sys.stdout.isatty() else 130).print(table(options.jobs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
