"""``python -m bench.stalls``: how long running rows wait for their next token while a long prompt is read.

Eight rows, every other one sampled, are decoded; then a prompt of 4,000 tokens is admitted. For each value of
``max_batched_tokens`` in turn: the longest time between two tokens of a running row before and after,
the time until the long prompt's first token, and what the eight rows got in that time.
"""

import argparse
import statistics
import time
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from millpond.settings import Settings, load_settings
from worker.assembly import prepare_folder, worker_engine
from worker.engines.base import Engine, GenerationRequest, Sampling

RUNNING_ROWS = 8
LONG_PROMPT_TOKENS = 4000
STEADY_STEPS = 20


@dataclass(frozen=True, slots=True)
class Stall:
    """``steady_gap_ms`` is the longest gap before the long prompt came, ``gap_ms`` while it was read."""

    steady_gap_ms: float
    gap_ms: float
    first_token_ms: float
    tokens_meanwhile: int


def measure(engine: Engine) -> Stall:
    """Ends with the engine empty."""
    rows = [GenerationRequest(f"r{i}", [100 + i] * 100, _sampling(i)) for i in range(RUNNING_ROWS)]
    assert not engine.admit(rows)
    engine.step()
    steady_gap_s, _, _ = _gaps(engine, "r0", STEADY_STEPS)
    prompt = [(7 * i) % 1000 + 100 for i in range(LONG_PROMPT_TOKENS)]
    assert not engine.admit([GenerationRequest("long", prompt, Sampling(4, 0, ignore_eos=True))])
    gap_s, first_s, meanwhile = _gaps(engine, "long", 1)
    engine.cancel([row.id for row in rows])
    while engine.num_rows:
        engine.step()
    return Stall(1000 * steady_gap_s, 1000 * gap_s, 1000 * first_s, meanwhile)


def _sampling(row: int) -> Sampling:
    """Every other row is sampled, as most models' rows are."""
    temperature = 0.6 if row % 2 else 0.0
    return Sampling(400, row, ignore_eos=True, temperature=temperature, top_p=0.95)


def _gaps(engine: Engine, until: str, count: int) -> tuple[float, float, int]:
    """Step until ``until`` has so many tokens more: the longest time between two steps that gave the
    running rows tokens, the time it took, and the running rows' tokens by then."""
    began_s = last_s = time.perf_counter()
    longest_s, meanwhile = 0.0, 0
    while count:
        events = engine.step()
        now_s = time.perf_counter()
        count -= any(event.id == until for event in events)
        running = sum(event.id != "long" for event in events)
        meanwhile += running
        if running:
            longest_s, last_s = max(longest_s, now_s - last_s), now_s
    return max(longest_s, time.perf_counter() - last_s), now_s - began_s, meanwhile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--model")
    parser.add_argument("--dtype")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    base = {"model": args.model, "dtype": args.dtype, "speculative_tokens": 0}
    settings = [load_settings(**base, max_batched_tokens=n) for n in args.tokens]
    engines = {s.max_batched_tokens: _build(s) for s in settings}
    table = Table("max_batched_tokens", "gap before", "gap", "first token of the long", "meanwhile")
    found: dict[int, list[Stall]] = {tokens: [] for tokens in engines}
    for _ in range(args.rounds):
        for tokens, engine in engines.items():
            found[tokens].append(measure(engine))
    for tokens, stalls in found.items():
        table.add_row(
            str(tokens),
            f"{statistics.median(s.steady_gap_ms for s in stalls):,.0f} ms",
            f"{statistics.median(s.gap_ms for s in stalls):,.0f} ms",
            f"{statistics.median(s.first_token_ms for s in stalls):,.0f} ms",
            f"{statistics.median(s.tokens_meanwhile for s in stalls):,.0f} tokens",
        )
    Console().print(table)


def _build(settings: Settings) -> Engine:
    preset = settings.preset()
    _, build = worker_engine(settings, preset, prepare_folder(settings, preset))
    engine = build()
    engine.warm_up()
    return engine


if __name__ == "__main__":
    main()
