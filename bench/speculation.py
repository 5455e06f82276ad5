"""``python -m bench.speculation``: what drafts gain where texts repeat, and what they cost where not.

Two engines, one with speculation and one without, take turns on the same rows, so many at a time: source
files of this tree to be repeated with one change, sums and tables, and 104 rows that have nothing in common,
drawn at temperature 1. Rows of one round share no finished outputs with those of another. Both must give the
same tokens.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.prefix_cache import distinct
from millpond.messages import JobRequest
from millpond.models.presets import Preset
from millpond.models.prompts import prepare_prompt
from millpond.models.tokenization import Tokenizer
from millpond.settings import Settings, load_settings
from worker.assembly import prepare_folder, worker_engine
from worker.engines.base import Engine, Finished, GenerationRequest, Sampling

ROOM = Path(__file__).parents[1] / "worker" / "engines" / "scheduling"
FILES = ("kv_budget", "loop_finder", "mask_thread", "matcher", "prefill", "tail_decoder")
LINES = 40
MATHS = (
    "Write the multiplication table of 7, from 7 x 1 to 7 x 20, one product a line.",
    "Write the squares of the numbers from 1 to 20, one a line, as n * n = n^2.",
    "Add the numbers from 1 to 15 step by step. Write each step on a line, with the sum so far.",
    "Solve 3x + 5 = 26, then 4x + 5 = 33, then 5x + 5 = 40, showing each step.",
    "Convert 1 km, 2 km, 3 km and so on up to 15 km to metres, one a line.",
    "A train goes 60 km in an hour. Say how far it has gone after each hour from 1 to 12.",
    "Expand (x + 1)(x + 2), then (x + 2)(x + 3), then (x + 3)(x + 4), showing each step.",
    "Count down from 100 to 40 in steps of 3, one subtraction a line.",
)
OUTPUT_TOKENS = 400


@dataclass(frozen=True, slots=True)
class Measured:
    wall_s: float
    ends: dict[str, Finished]

    @property
    def tokens_per_s(self) -> float:
        return sum(len(end.token_ids) for end in self.ends.values()) / self.wall_s

    @property
    def drafted(self) -> int:
        return sum(end.stats.drafted_tokens for end in self.ends.values())

    @property
    def accepted(self) -> int:
        return sum(end.stats.accepted_tokens for end in self.ends.values())


def code() -> list[str]:
    prompts = []
    for name in FILES:
        text = "\n".join((ROOM / f"{name}.py").read_text().splitlines()[:LINES])
        old = next(word for word in text.split() if word.startswith("_") or word == "self,")
        prompts.append(
            f"Repeat this Python file exactly, but rename `{old.strip('_,():.')}` to `other`:\n\n"
            f"```python\n{text}\n```"
        )
    return prompts


# What is asked, None for what has nothing in common, and how many rows run at once.
WORKLOADS: dict[str, tuple[Callable[[], Sequence[str]] | None, tuple[int, ...]]] = {
    "code editing": (code, (1, 4)),
    "maths": (lambda: MATHS, (1, 4)),
    "nothing in common": (None, (64,)),
}


def requests(
    make: Callable[[], Sequence[str]] | None,
    salt: str,
    preset: Preset,
    tokenizer: Tokenizer,
    temperature: float,
) -> list[GenerationRequest]:
    if make is None:
        rows = distinct(salt, random.Random(salt))
        return [replace(row, sampling=replace(row.sampling, temperature=1.0)) for row in rows]
    return [
        GenerationRequest(
            f"{i}",
            prepare_prompt(JobRequest(prompt=prompt), preset, tokenizer).token_ids,
            Sampling(OUTPUT_TOKENS, i, temperature=temperature),
            cache_salt=salt,
        )
        for i, prompt in enumerate(make())
    ]


def run(engine: Engine, rows: Sequence[GenerationRequest], at_once: int) -> Measured:
    waiting = list(reversed(rows))
    ends: dict[str, Finished] = {}
    began_s = time.perf_counter()
    while waiting or engine.num_rows:
        free = at_once - engine.num_rows
        group = [waiting.pop() for _ in range(min(free, len(waiting)))]
        if group:
            assert not engine.admit(group)
        for event in engine.step():
            if isinstance(event, Finished):
                ends[event.id] = event
    return Measured(time.perf_counter() - began_s, ends)


def build(settings: Settings, tokens: int) -> tuple[Preset, Tokenizer, Engine]:
    chosen = settings.model_copy(update={"speculative_tokens": tokens})
    preset = chosen.preset()
    tokenizer, make = worker_engine(chosen, preset, prepare_folder(chosen, preset))
    engine = make()
    engine.warm_up()
    return preset, tokenizer, engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--only", choices=WORKLOADS, nargs="+", default=list(WORKLOADS))
    arguments = parser.parse_args()
    settings = load_settings(slots=64)
    tokens = settings.speculative_tokens
    assert tokens, "speculative_tokens is 0"
    preset, tokenizer, speculating = build(settings, tokens)
    _, _, plain = build(settings, 0)
    engines = {tokens: speculating, 0: plain}
    table = Table("rows", "at once", "tok/s", "without", "ratio", "each round", "accepted")
    for name in arguments.only:
        make, sizes = WORKLOADS[name]
        for at_once in sizes:
            measured: dict[int, list[Measured]] = {tokens: [], 0: []}
            for turn in range(arguments.rounds):
                salt = f"{name} {at_once} {turn}"
                rows = requests(make, salt, preset, tokenizer, arguments.temperature)
                for key in sorted(engines, reverse=bool(turn % 2)):
                    measured[key].append(run(engines[key], rows, at_once))
                one, other = measured[0][-1].ends, measured[tokens][-1].ends
                assert {i: end.token_ids for i, end in one.items()} == {
                    i: end.token_ids for i, end in other.items()
                }
            speeds = {k: [m.tokens_per_s for m in found] for k, found in measured.items()}
            ratios = [a / b for a, b in zip(speeds[tokens], speeds[0], strict=True)]
            last = measured[tokens][-1]
            table.add_row(
                name,
                f"{at_once}",
                f"{statistics.median(speeds[tokens]):.1f}",
                f"{statistics.median(speeds[0]):.1f}",
                f"{statistics.median(ratios):.2f}",
                ", ".join(f"{ratio:.2f}" for ratio in ratios),
                f"{last.accepted} of {last.drafted}",
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
