"""``python -m bench.prefix_cache``: what the prefix cache saves where prompts repeat, and costs where not.

Two engines on one loaded model, one with the cache and one without, take turns: 200 rows behind one prefix
of 600 tokens, and 104 rows that have nothing in common. The prompts are random tokens. Each round begins
with an empty cache.
"""

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from millpond.settings import Settings, load_settings
from worker.assembly import prepare_folder, worker_engine
from worker.engines.base import Engine, Finished, GenerationRequest, Sampling

SHARED_ROWS, SHARED_TOKENS = 200, 600
DISTINCT_ROWS = 104
VOCABULARY = range(1000, 40_000)


@dataclass(frozen=True, slots=True)
class Measured:
    """``cpu_s`` is that of all threads, which other programs on the machine disturb less than ``wall_s``."""

    wall_s: float
    cpu_s: float
    token_ids: dict[str, tuple[int, ...]]


def shared(salt: str, rng: random.Random) -> list[GenerationRequest]:
    prefix = rng.choices(VOCABULARY, k=SHARED_TOKENS)
    return [
        _row(i, [*prefix, *rng.choices(VOCABULARY, k=rng.randrange(10, 60))], 32, salt)
        for i in range(SHARED_ROWS)
    ]


def distinct(salt: str, rng: random.Random) -> list[GenerationRequest]:
    return [
        _row(i, rng.choices(VOCABULARY, k=rng.randrange(30, 400)), rng.randrange(16, 128), salt)
        for i in range(DISTINCT_ROWS)
    ]


def _row(number: int, prompt: list[int], output_tokens: int, salt: str) -> GenerationRequest:
    sampling = Sampling(output_tokens, number, ignore_eos=True)
    return GenerationRequest(f"{number}", prompt, sampling, cache_salt=salt)


def run(engine: Engine, rows: Sequence[GenerationRequest]) -> Measured:
    """All rows, as fast as there are slots for them."""
    waiting = list(reversed(rows))
    found: dict[str, tuple[int, ...]] = {}
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    while waiting or engine.num_rows:
        free = engine.capacity().free_slots
        group = [waiting.pop() for _ in range(min(free, len(waiting)))]
        if group:
            assert not engine.admit(group)
        for event in engine.step():
            if isinstance(event, Finished):
                found[event.id] = event.token_ids
    return Measured(time.perf_counter() - wall_s, time.process_time() - cpu_s, found)


def build(settings: Settings, prefix_cache_tokens: int) -> Engine:
    chosen = settings.model_copy(update={"prefix_cache_tokens": prefix_cache_tokens})
    preset = chosen.preset()
    _, make = worker_engine(chosen, preset, prepare_folder(chosen, preset))
    engine = make()
    engine.warm_up()
    return engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    settings = load_settings(slots=64, speculative_tokens=0)
    engines = {kept: build(settings, kept) for kept in (32_768, 0)}
    table = Table("rows", "cache", "wall s", "CPU s", "CPU s of each round")
    for name, make in (("behind one prefix", shared), ("nothing in common", distinct)):
        measured: dict[int, list[Measured]] = {kept: [] for kept in engines}
        for turn in range(arguments.rounds):
            order = sorted(engines, reverse=bool(turn % 2))
            for kept in order:
                rows = make(f"{turn}", random.Random(turn))
                measured[kept].append(run(engines[kept], rows))
            assert measured[0][-1].token_ids == measured[32_768][-1].token_ids
        for kept, runs in measured.items():
            wall_s = statistics.median(one.wall_s for one in runs)
            cpu_s = statistics.median(one.cpu_s for one in runs)
            each = ", ".join(f"{one.cpu_s:.1f}" for one in runs)
            table.add_row(name, "on" if kept else "off", f"{wall_s:.2f}", f"{cpu_s:.2f}", each)
    Console().print(table)


if __name__ == "__main__":
    main()
