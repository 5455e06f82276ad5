"""When requests are sent. Pure."""

import random
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from millpond.messages.fields import Frozen

MAX_CONCURRENCY = 10_000
MAX_RATE_PER_S = 100_000.0


class ClosedLoop(Frozen):
    """So many clients, each of which sends its next request when the last one is answered."""

    kind: Literal["closed"] = "closed"
    concurrency: Annotated[int, Field(ge=1, le=MAX_CONCURRENCY)]

    @property
    def level(self) -> float:
        return float(self.concurrency)

    def __str__(self) -> str:
        return f"{self.concurrency} at once"


class OpenLoop(Frozen):
    """Requests come whether or not earlier ones are answered: ``rate_per_s`` on average, in bursts of
    ``burst``, with exponential gaps between the bursts (a Poisson process if ``burst`` is 1)."""

    kind: Literal["open"] = "open"
    rate_per_s: Annotated[float, Field(gt=0, le=MAX_RATE_PER_S, allow_inf_nan=False)]
    burst: Annotated[int, Field(ge=1, le=MAX_CONCURRENCY)] = 1

    @property
    def level(self) -> float:
        return self.rate_per_s

    def arrivals_s(self, chance: random.Random) -> Iterator[float]:
        """Endless times since the start."""
        now_s = 0.0
        while True:
            now_s += chance.expovariate(self.rate_per_s / self.burst)
            for _ in range(self.burst):
                yield now_s

    def __str__(self) -> str:
        return f"{self.rate_per_s:g}/s" + (f" in bursts of {self.burst}" if self.burst > 1 else "")


Load = Annotated[ClosedLoop | OpenLoop, Field(discriminator="kind")]
