"""Puts a load on a server, and follows it."""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from millpond.bench.loads import ClosedLoop, Load, OpenLoop
from millpond.bench.timed import BenchError, Timed
from millpond.bench.workloads import Asking, Question, Wording, Workload, made_up

if TYPE_CHECKING:
    from millpond.bench.client import BenchClient

# Words of the two texts by which a server's counting is learnt.
PROBES = (4, 20)
PROBE_TOKENS = 2


@dataclass(frozen=True, slots=True)
class Bounds:
    """A load sends at most so many requests, none after ``seconds``, and ends with the last answer."""

    requests: int
    seconds: float


@dataclass(slots=True)
class Driven:
    """A load while it runs, for those who watch it; afterwards its requests, in order of their end."""

    began_s: float = 0.0
    running: int = 0
    done: list[Timed] = field(default_factory=list)
    tokens: int = 0
    failed: int = 0
    wall_s: float = 0.0

    def add(self, timed: Timed) -> None:
        self.done.append(timed)
        self.failed += timed.error is not None
        self.tokens += (timed.usage or {}).get("completion_tokens", timed.pieces)


Watch = Callable[[Driven], None]
_Ask = Callable[[float | None], Coroutine[None, None, None]]


async def drive(
    client: "BenchClient",
    load: Load,
    workload: Workload,
    numbers: Iterator[int],
    bounds: Bounds,
    watch: Watch,
) -> Driven:
    """Run one load to its end. ``watch`` is called whenever a request is sent or answered."""
    driven = Driven(time.perf_counter())

    async def ask(due_s: float | None) -> None:
        driven.running += 1
        watch(driven)
        timed = await client.send(workload.question(next(numbers)), due_s)
        driven.running -= 1
        driven.add(timed)
        watch(driven)

    if isinstance(load, ClosedLoop):
        await _closed(load, bounds, driven.began_s, ask)
    else:
        await _open(load, bounds, driven.began_s, ask)
    driven.wall_s = time.perf_counter() - driven.began_s
    return driven


async def _closed(load: ClosedLoop, bounds: Bounds, began_s: float, ask: _Ask) -> None:
    left = iter(range(bounds.requests))

    async def one_client() -> None:
        for _ in left:
            if time.perf_counter() - began_s >= bounds.seconds:
                return
            await ask(None)

    async with asyncio.TaskGroup() as clients:
        for _ in range(min(load.concurrency, bounds.requests)):
            clients.create_task(one_client())


async def _open(load: OpenLoop, bounds: Bounds, began_s: float, ask: _Ask) -> None:
    """A request counts from when it was due: that this client was late is the request's wait, too."""
    arrivals_s = load.arrivals_s(random.Random(f"{load}"))
    async with asyncio.TaskGroup() as requests:
        for _, due_s in zip(range(bounds.requests), arrivals_s, strict=False):
            if due_s >= bounds.seconds:
                return
            await asyncio.sleep(began_s + due_s - time.perf_counter())
            requests.create_task(ask(began_s + due_s))


async def learn_wording(client: "BenchClient", asking: Asking) -> Wording:
    """What the server counts for words; it also wakes the server up. Raises BenchError if it will not
    answer."""
    counts = []
    for words in PROBES:
        text = made_up(words, random.Random(words))
        timed = await client.send(Question(asking.route, asking.body(text, PROBE_TOKENS)))
        if timed.error is not None:
            raise BenchError(f"{client.url}: {timed.error}")
        counts.append((words, int((timed.usage or {}).get("prompt_tokens", words))))
    return Wording.from_counts(counts)
