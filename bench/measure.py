"""What all figures share: a figure with its target, medians of alternated rounds, prompts to send."""

import random
import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

ROUNDS = 5

Side = Callable[[], Awaitable[float]]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. ``value`` is what the target speaks of, ``met`` whether it is reached.

    ``ours`` and ``peer`` are what was measured; a figure without a target is there for comparison.
    """

    name: str
    ours: str
    peer: str
    value: str = ""
    target: str = ""
    met: bool | None = None


async def alternate(*sides: Side, rounds: int = ROUNDS) -> list[float]:
    """Run the sides in turn, so that a busy moment of the machine hits all; the median of each."""
    measured: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, values in zip(sides, measured, strict=True):
            values.append(await side())
    return [statistics.median(values) for values in measured]


def ratio(name: str, ours: float, peer: float, at_least: float, peer_name: str = "RQ") -> Figure:
    """A rate beside a peer's."""
    times = ours / peer
    return Figure(
        name,
        f"{ours:,.0f}/s",
        f"{peer_name} {peer:,.0f}/s",
        f"{times:.1f} times",
        f"≥ {at_least:g} times",
        times >= at_least,
    )


def prompts(number: int, num_bytes: int) -> list[str]:
    """Texts of made-up words, all different and the same on every run."""
    chance = random.Random(1)
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 9))) for _ in range(5_000)]
    return [" ".join(chance.choices(words, k=num_bytes // 3))[:num_bytes] for _ in range(number)]


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
