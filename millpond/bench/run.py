"""A whole run: rounds over places over loads, so that a busy moment of the machine hits all of them."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from millpond.bench.driver import Bounds, Driven, drive, learn_wording
from millpond.bench.loads import ClosedLoop, Load
from millpond.bench.places import Open, Place
from millpond.bench.records import LoadRun, Target
from millpond.bench.workloads import Asking, Wording, Workload

# More than any load asks.
QUESTIONS = 10_000_000

MakeWorkload = Callable[[Wording], Workload]


class Shown:
    """What a run tells of itself while it runs; this one tells nobody."""

    def opening(self, place: str, round: int) -> None: ...

    def loading(self, target: str, load: Load, round: int) -> None: ...

    def watch(self, driven: Driven) -> None: ...

    def ended(self, run: LoadRun) -> None: ...


@dataclass(slots=True)
class BenchRun:
    """``runs`` and ``targets`` grow while it runs, so that a run that is stopped leaves what it has."""

    places: Sequence[Place]
    loads: Sequence[Load]
    asking: Asking
    workload: MakeWorkload
    bounds: Bounds
    warmup: int
    rounds: int
    shown: Shown
    runs: list[LoadRun] = field(default_factory=list)
    targets: dict[str, Target] = field(default_factory=dict)

    async def run(self) -> None:
        """Raises BenchError, StackError."""
        for round in range(1, self.rounds + 1):
            for place in self.places:
                self.shown.opening(place.name, round)
                async with place.opened() as opened:
                    self.targets[place.name] = opened.target
                    await self._measure(opened, round)

    async def _measure(self, opened: Open, round: int) -> None:
        """All places get the same questions, no place the same question twice."""
        workload = self.workload(await learn_wording(opened.client, self.asking))
        blocks = itertools.count(round * (1 + len(self.loads)) * QUESTIONS, QUESTIONS)
        await self._warm_up(opened, workload, itertools.count(next(blocks)))
        for load in self.loads:
            numbers = itertools.count(next(blocks))
            self.shown.loading(opened.target.name, load, round)
            driven = await drive(
                opened.client, load, workload, numbers, self.bounds, self.shown.watch
            )
            run = LoadRun(
                target=opened.target.name,
                load=load,
                round=round,
                wall_s=driven.wall_s,
                slots=opened.slots,
                requests=await opened.client.with_receipts(driven.done, driven.began_s),
            )
            self.runs.append(run)
            self.shown.ended(run)

    async def _warm_up(self, opened: Open, workload: Workload, numbers: Iterator[int]) -> None:
        """So many requests at once, which are not measured."""
        if self.warmup:
            bounds = Bounds(self.warmup, self.bounds.seconds)
            load = ClosedLoop(concurrency=self.warmup)
            await drive(opened.client, load, workload, numbers, bounds, lambda driven: None)
