"""From requests to figures. Pure."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from millpond.bench.records import Answered, LoadRun

# Shares of requests whose added wait, in the queue, is at most this.
WAITS_MS = (300, 600, 800)
PERCENTILES = (50, 90, 99)
LATENCIES = ("ttft", "tpot", "e2e", "wait")


def ttft_ms(request: Answered) -> float | None:
    """Time to the first token."""
    return None if request.first_s is None else 1000 * (request.first_s - request.sent_s)


def e2e_ms(request: Answered) -> float | None:
    """End to end: from sending to the last piece of text."""
    return None if request.last_s is None else 1000 * (request.last_s - request.sent_s)


def tpot_ms(request: Answered) -> float | None:
    """Time per output token after the first."""
    if request.first_s is None or request.last_s is None or (request.output_tokens or 0) < 2:
        return None
    return 1000 * (request.last_s - request.first_s) / ((request.output_tokens or 0) - 1)


def wait_ms(request: Answered) -> float | None:
    """From acceptance to the claim: what the queue and its window add."""
    return request.queue_wait_ms


LATENCY_OF = dict(zip(LATENCIES, (ttft_ms, tpot_ms, e2e_ms, wait_ms), strict=True))


def latencies(requests: Sequence[Answered], name: str) -> list[float]:
    """Of the requests that succeeded and have it."""
    found = (LATENCY_OF[name](request) for request in requests if request.error is None)
    return [value for value in found if value is not None]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of sorted values, with linear interpolation as numpy has it."""
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True, slots=True)
class Figures:
    """One load on one target. Rates are medians over its rounds, percentiles are over all requests.

    ``slot_use`` is the mean share of the slots that were decoding. What is missing could not be known.
    """

    target: str
    load: str
    kind: str
    level: float
    requests: int
    failed: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    goodput_per_s: float | None
    slot_use: float | None
    batch_rows: float | None
    mean_prompt_tokens: float | None
    mean_output_tokens: float | None
    latencies_ms: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    waits_within: Mapping[int, float] = field(default_factory=dict)

    def latency_ms(self, name: str, percent: int) -> float | None:
        return self.latencies_ms.get(name, {}).get(percent)


def group_runs(runs: Sequence[LoadRun]) -> list[list[LoadRun]]:
    """The rounds of each load on each target together, in order of appearance."""
    groups: dict[tuple[str, str], list[LoadRun]] = {}
    for run in runs:
        groups.setdefault((run.target, str(run.load)), []).append(run)
    return list(groups.values())


def figures(rounds: Sequence[LoadRun], limits_ms: Mapping[str, float]) -> Figures:
    """Of the rounds of one load on one target."""
    requests = [request for run in rounds for request in run.requests]
    good = [request for request in requests if request.error is None]
    ordered = {name: sorted(latencies(requests, name)) for name in LATENCIES}
    waits = ordered["wait"]
    return Figures(
        target=rounds[0].target,
        load=str(rounds[0].load),
        kind=rounds[0].load.kind,
        level=rounds[0].load.level,
        requests=len(requests),
        failed=len(requests) - len(good),
        requests_per_s=_median_rate(rounds, lambda request: 1),
        output_tokens_per_s=_median_rate(rounds, lambda request: request.output_tokens or 0),
        total_tokens_per_s=_median_rate(
            rounds, lambda request: (request.output_tokens or 0) + (request.prompt_tokens or 0)
        ),
        goodput_per_s=_median_rate(rounds, lambda request: int(meets(request, limits_ms)))
        if limits_ms
        else None,
        slot_use=_slot_use(rounds),
        batch_rows=_mean([request.batch_rows for request in good]),
        mean_prompt_tokens=_mean([request.prompt_tokens for request in good]),
        mean_output_tokens=_mean([request.output_tokens for request in good]),
        latencies_ms={
            name: {percent: percentile(values, percent) for percent in PERCENTILES}
            for name, values in ordered.items()
            if values
        },
        waits_within={
            limit: sum(wait <= limit for wait in waits) / len(waits) for limit in WAITS_MS if waits
        },
    )


def meets(request: Answered, limits_ms: Mapping[str, float]) -> bool:
    """Whether a request succeeded within all limits. What cannot be known, such as the time per token of a
    single token, is within."""
    found = ((LATENCY_OF[name](request), limit) for name, limit in limits_ms.items())
    return request.error is None and all(value is None or value <= limit for value, limit in found)


def _median_rate(rounds: Sequence[LoadRun], count: Callable[[Answered], int]) -> float:
    """What the successful requests count for, by the seconds of their round."""
    return statistics.median(
        sum(count(request) for request in run.requests if request.error is None) / run.wall_s
        for run in rounds
    )


def _slot_use(rounds: Sequence[LoadRun]) -> float | None:
    shares = []
    for run in rounds:
        decoding_ms = [r.decoding_ms for r in run.requests if r.decoding_ms is not None]
        if run.slots and decoding_ms:
            shares.append(sum(decoding_ms) / 1000 / (run.slots * run.wall_s))
    return statistics.median(shares) if shares else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
