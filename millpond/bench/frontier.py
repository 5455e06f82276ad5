"""Which batches of which lengths run: found by trying, with the memory seen and the memory planned."""

import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from millpond.bench.driver import Bounds, Driven, drive, learn_wording
from millpond.bench.lengths import Fixed
from millpond.bench.loads import ClosedLoop
from millpond.bench.memory import Seen, watching_memory
from millpond.bench.places import OwnStack
from millpond.bench.records import Tried
from millpond.bench.run import Shown
from millpond.bench.timed import Timed
from millpond.bench.workloads import Asking, MadeUp
from millpond.errors import MillpondError
from millpond.models.architecture import Architecture
from millpond.models.config import read_model_config
from millpond.models.memory_plan import BYTES_EACH, Footprint
from millpond.settings import Settings

# A batch that does not end in this time is not worth knowing.
SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Frontier:
    """``place`` is started anew for every attempt, with as many slots and as much KV cache as it needs.

    Half of a row is prompt and half is answer, so that the first rows still run when the last ones begin.
    """

    place: OwnStack
    asking: Asking
    lengths: Sequence[int]
    batches: Sequence[int]
    shown: Shown

    async def run(self) -> AsyncIterator[Tried]:
        """For each length, rising batches up to the first that does not fit."""
        for length in self.lengths:
            for batch in self.batches:
                tried = await self._try(batch, length)
                yield tried
                if tried.outcome != "fits":
                    break

    async def _try(self, batch: int, length: int) -> Tried:
        settings = self.place.settings
        own = {"slots": batch, "kv_tokens": settings.kv_tokens or batch * length}
        place = replace(self.place, settings=settings.model_copy(update=own))
        self.shown.opening(f"{batch} rows of {length} tokens", 1)
        dtype: str | None = None
        seen = Seen()
        try:
            async with place.opened() as opened:
                dtype = _text(opened.target.worker.get("dtype"))
                device = _text(opened.target.worker.get("device"))
                workload = MadeUp(
                    Fixed(length - length // 2),
                    Fixed(length // 2),
                    self.asking,
                    await learn_wording(opened.client, self.asking),
                    seed=0,
                )
                load = ClosedLoop(concurrency=batch)
                self.shown.loading(place.name, load, 1)
                async with watching_memory(opened.worker_pid, device) as seen:
                    driven = await drive(
                        opened.client,
                        load,
                        workload,
                        itertools.count(),
                        Bounds(batch, SECONDS),
                        self.shown.watch,
                    )
        except MillpondError as error:
            driven = Driven(done=[Timed(0.0, error=str(error))])
        return _judge(batch, length, driven, seen, planned_bytes(settings, dtype, batch, length))


def _judge(batch: int, length: int, driven: Driven, seen: Seen, planned: int | None) -> Tried:
    error = next((timed.error for timed in driven.done if timed.error is not None), None)
    rows = most_side_by_side(driven.done)
    return Tried(
        batch=batch,
        length=length,
        outcome="fails" if error is not None else "fits" if rows >= batch else "waits",
        most_rows=rows,
        memory_bytes=seen.most_bytes,
        planned_bytes=planned,
        error=error,
    )


def most_side_by_side(requests: Sequence[Timed]) -> int:
    """The most requests of which each was between its first and its last token at the same moment."""
    changes: list[tuple[float, int]] = []
    for timed in requests:
        if timed.first_s is not None and timed.last_s is not None:
            changes += [(timed.first_s, 1), (timed.last_s, -1)]
    return max(itertools.accumulate(change for _, change in sorted(changes)), default=0)


def planned_bytes(settings: Settings, dtype: str | None, batch: int, length: int) -> int | None:
    """What `millpond plan` says of it; None for an engine that it does not speak of."""
    if dtype not in BYTES_EACH or settings.engine != "transformers":
        return None
    config = read_model_config(settings.preset(), settings.cache_dir)
    footprint = Footprint(Architecture.from_config(config), BYTES_EACH[dtype])
    return footprint.total_bytes(batch, length)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
