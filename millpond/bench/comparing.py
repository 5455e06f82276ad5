"""What moved between two runs, and whether that is more than noise. Pure.

A bootstrap over blocks. Requests that run at the same time share their fate, so they are no independent
samples: each round is cut into blocks of time, and whole blocks are drawn with replacement, within rounds
that are drawn, too. The interval is that of the ratio new / old. What one round cannot show is how much
the machine itself drifts from one sitting to the next: several rounds can.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from millpond.bench.figures import group_runs, latencies, percentile
from millpond.bench.records import Answered, LoadRun, Record

BLOCKS = 10
RESAMPLES = 400
CONFIDENCE = 0.95
# Smaller changes are told, but not called moved: no machine is that steady.
LEAST_CHANGE = 0.02


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a round: how long it was, and what falls into it."""

    seconds: float
    values: Sequence[float]


Rounds = Sequence[Sequence[Block]]


@dataclass(frozen=True, slots=True)
class Metric:
    """``cut`` makes blocks of a round, ``of`` one figure of blocks."""

    cut: Callable[[LoadRun], list[Block]]
    of: Callable[[Sequence[Block]], float | None]
    more_is_better: bool


@dataclass(frozen=True, slots=True)
class Moved:
    """One metric of one load. ``low`` to ``high`` is the interval of ``ratio``, new / old."""

    target: str
    load: str
    metric: str
    old: float
    new: float
    ratio: float
    low: float
    high: float
    more_is_better: bool

    @property
    def verdict(self) -> str:
        outside = self.low > 1 or self.high < 1
        if not outside or abs(self.ratio - 1) < LEAST_CHANGE:
            return "noise"
        return "better" if (self.ratio > 1) is self.more_is_better else "worse"


def _latency(name: str, percent: int) -> Metric:
    def of(blocks: Sequence[Block]) -> float | None:
        values = sorted(value for block in blocks for value in block.values)
        return percentile(values, percent) if values else None

    return Metric(lambda run: _by_end(run, name), of, more_is_better=False)


def _by_end(run: LoadRun, name: str) -> list[Block]:
    """A round in blocks of equal time, with the latencies of the requests that ended in each."""
    blocks: list[list[Answered]] = [[] for _ in range(BLOCKS)]
    for request in run.requests:
        at_s = request.sent_s if request.last_s is None else request.last_s
        blocks[max(0, min(BLOCKS - 1, int(BLOCKS * at_s / run.wall_s)))].append(request)
    return [Block(run.wall_s / BLOCKS, latencies(requests, name)) for requests in blocks]


def _tokens(run: LoadRun) -> list[Block]:
    """The time until the last request was sent, in blocks, with the tokens that came in each.

    A request's tokens count as spread evenly from the first to the last: rows that began together end
    together, and would fall into one block. What comes after the last request is the load's tail.
    """
    end_s = max((request.sent_s for request in run.requests), default=0.0)
    if end_s < run.wall_s / 2:  # nearly all were sent at once: there is nothing but the tail
        end_s = run.wall_s
    seconds = end_s / BLOCKS
    return [
        Block(
            seconds,
            [_tokens_between(request, i * seconds, (i + 1) * seconds) for request in run.requests],
        )
        for i in range(BLOCKS)
    ]


def _tokens_between(request: Answered, begin_s: float, end_s: float) -> float:
    if request.error is not None or request.last_s is None:
        return 0.0
    tokens = request.output_tokens or 0
    first_s = request.sent_s if request.first_s is None else request.first_s
    if request.last_s <= first_s:
        return float(tokens if begin_s <= request.last_s < end_s else 0)
    common_s = min(request.last_s, end_s) - max(first_s, begin_s)
    return tokens * max(0.0, common_s) / (request.last_s - first_s)


def _rate(blocks: Sequence[Block]) -> float | None:
    return sum(sum(block.values) for block in blocks) / sum(block.seconds for block in blocks)


METRICS: Mapping[str, Metric] = {
    "output tok/s": Metric(_tokens, _rate, more_is_better=True),
    "TTFT p50": _latency("ttft", 50),
    "TTFT p90": _latency("ttft", 90),
    "TPOT p50": _latency("tpot", 50),
    "end to end p50": _latency("e2e", 50),
    "end to end p90": _latency("e2e", 90),
}


def compare(old: Record, new: Record) -> list[Moved]:
    """For every load that both have on the same target; runs of one target each need not call it alike."""
    old_groups, new_groups = _groups(old), _groups(new)
    alone = len(old.targets) == len(new.targets) == 1
    found = []
    for (target, load), new_runs in new_groups.items():
        key = (old.targets[0].name if alone else target, load)
        if key in old_groups:
            found += _moved(target, load, old_groups[key], new_runs)
    return found


def _groups(record: Record) -> dict[tuple[str, str], list[LoadRun]]:
    return {(runs[0].target, str(runs[0].load)): runs for runs in group_runs(record.runs)}


def _moved(target: str, load: str, old: list[LoadRun], new: list[LoadRun]) -> list[Moved]:
    found = []
    for name, metric in METRICS.items():
        old_rounds = [metric.cut(run) for run in old]
        new_rounds = [metric.cut(run) for run in new]
        before, after = metric.of(_all(old_rounds)), metric.of(_all(new_rounds))
        if before and after:
            low, high = interval(old_rounds, new_rounds, metric)
            ratio = after / before
            better = metric.more_is_better
            found.append(Moved(target, load, name, before, after, ratio, low, high, better))
    return found


def _all(rounds: Rounds) -> list[Block]:
    return [block for blocks in rounds for block in blocks]


def interval(old: Rounds, new: Rounds, metric: Metric) -> tuple[float, float]:
    """Of the ratio new / old, with the confidence above. The same on every call."""
    chance = random.Random(1)
    ratios = sorted(
        after / before
        for _ in range(RESAMPLES)
        if (before := metric.of(_drawn(old, chance))) and (after := metric.of(_drawn(new, chance)))
    )
    if not ratios:
        return 0.0, math.inf
    tail = 100 * (1 - CONFIDENCE) / 2
    return percentile(ratios, tail), percentile(ratios, 100 - tail)


def _drawn(rounds: Rounds, chance: random.Random) -> list[Block]:
    return [
        block
        for blocks in chance.choices(rounds, k=len(rounds))
        for block in chance.choices(blocks, k=len(blocks))
    ]
