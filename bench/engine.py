"""``python -m bench.engine WORKLOAD``: the engine alone and end to end, on a file of batch requests.

Alone, this process feeds the engine directly; end to end, ``millpond run-batch`` does the same rows
through a queue and a worker of its own. Loading and warming up are not counted in either.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
from rich.console import Console
from rich.table import Table

from bench.end_to_end import EndToEnd, run_end_to_end
from millpond.batch_file import Row, read_rows
from millpond.messages import JobRequest
from millpond.prompts import prepare_prompt
from millpond.settings import Settings, load_settings
from millpond.tokenization import Tokenizer
from worker.assembly import prepare_folder, worker_engine
from worker.engines.base import Engine, Finished, GenerationRequest, Sampling
from worker.grouping import cut_groups

SINGLE_ROW_TOKENS = 65


@dataclass(frozen=True, slots=True)
class Measured:
    """``slot_share`` (and end to end): rows over slots in the steps while more rows waited. None:
    none ever did."""

    tokens_per_s: float
    end_to_end_tokens_per_s: float
    prefill_tokens_per_s: float
    decode_step_ms: float
    slot_share: float | None
    end_to_end_slot_share: float | None
    single_row_token_ms: float
    load_s: float

    @property
    def end_to_end_share(self) -> float:
        return self.end_to_end_tokens_per_s / self.tokens_per_s


class Bench:
    def __init__(self, workload: Path, repeat: int, settings: Settings) -> None:
        started_s = time.perf_counter()
        preset = settings.preset()
        self._tokenizer, build = worker_engine(settings, preset, prepare_folder(settings, preset))
        self._settings = settings
        self._engine: Engine = build()
        self._engine.warm_up()
        self.load_s = time.perf_counter() - started_s
        with workload.open("rb") as lines:
            jobs = [row.request for row in read_rows(lines) if isinstance(row, Row)] * repeat
        self._rows = [self._row(f"{i}", job, self._tokenizer) for i, job in enumerate(jobs)]

    def _row(self, row_id: str, job: JobRequest, tokenizer: Tokenizer) -> GenerationRequest:
        prompt = prepare_prompt(job, self._settings.preset(), tokenizer)
        sampling = Sampling(
            max_tokens=prompt.max_tokens,
            seed=0,
            temperature=job.temperature or 0.0,
            ignore_eos=job.ignore_eos,
        )
        return GenerationRequest(row_id, prompt.token_ids, sampling)

    def run_alone(self) -> dict[str, float | None]:
        """All rows through the engine, free slots filled at once and in order of arrival."""
        engine, waiting = self._engine, list(self._rows)
        slots = engine.info.slots
        tokens = decode_steps = full_rows = full_steps = 0
        prefill_s = decode_s = 0.0
        started: set[str] = set()
        started_s = time.perf_counter()
        while waiting or engine.num_rows:
            waiting = self._admit(waiting)
            step_s, events = time.perf_counter(), engine.step()
            step_s = time.perf_counter() - step_s
            decoded = {event.id for event in events} & started
            started.update(event.id for event in events)
            if decoded:
                decode_s, decode_steps = decode_s + step_s, decode_steps + 1
                if waiting:
                    full_rows, full_steps = full_rows + len(decoded), full_steps + 1
            else:
                prefill_s += step_s
            for event in events:
                if isinstance(event, Finished):
                    tokens += len(event.token_ids)
        prompts = sum(len(row.prompt_token_ids) for row in self._rows)
        return {
            "tokens_per_s": tokens / (time.perf_counter() - started_s),
            "prefill_tokens_per_s": prompts / prefill_s,
            "decode_step_ms": 1000 * decode_s / max(1, decode_steps),
            "slot_share": full_rows / (slots * full_steps) if full_steps else None,
        }

    def _admit(self, waiting: list[GenerationRequest]) -> list[GenerationRequest]:
        """Fill the free slots with one group; the rest."""
        free = self._engine.capacity()
        fitting = waiting[: free.free_slots]
        lengths = [len(row.prompt_token_ids) for row in fitting]
        groups = cut_groups(lengths, self._settings.group_padded_tokens, max(1, len(fitting)))
        if not groups:
            return waiting
        group = [fitting[i] for i in groups[0]]
        rejected = {r.id for r in self._engine.admit(group)}
        taken = {row.id for row in group} - rejected
        return [row for row in waiting if row.id not in taken]

    def run_one_row(self) -> float:
        """Milliseconds for each output token of a row alone."""
        row = self._rows[0]
        sampling = Sampling(max_tokens=SINGLE_ROW_TOKENS, seed=0, ignore_eos=True)
        rejections = self._engine.admit([GenerationRequest("one", row.prompt_token_ids, sampling)])
        assert not rejections
        self._engine.step()
        times = []
        while self._engine.num_rows:
            started_s = time.perf_counter()
            self._engine.step()
            times.append(time.perf_counter() - started_s)
        return 1000 * statistics.median(times)


def measure(bench: Bench, end_to_end: Callable[[], EndToEnd], rounds: int) -> Measured:
    """Alternate between the two ways; medians."""
    alone = []
    through_queue = []
    single = []
    for _ in range(rounds):
        alone.append(bench.run_alone())
        single.append(bench.run_one_row())
        through_queue.append(end_to_end())

    shares = [run.slot_share for run in through_queue if run.slot_share is not None]

    def median(name: str) -> float:
        return statistics.median(run[name] or 0.0 for run in alone)

    return Measured(
        tokens_per_s=median("tokens_per_s"),
        end_to_end_tokens_per_s=statistics.median(run.tokens_per_s for run in through_queue),
        prefill_tokens_per_s=median("prefill_tokens_per_s"),
        decode_step_ms=median("decode_step_ms"),
        slot_share=None if alone[0]["slot_share"] is None else median("slot_share"),
        end_to_end_slot_share=statistics.median(shares) if shares else None,
        single_row_token_ms=statistics.median(single),
        load_s=bench.load_s,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", type=Path, help="OpenAI batch lines (JSONL)")
    parser.add_argument("--model")
    parser.add_argument("--dtype")
    parser.add_argument("--weights", choices=("auto", "int8"), default="auto")
    parser.add_argument("--slots", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=1, help="the file so often: a deep queue")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    chosen = {
        "model": args.model,
        "dtype": args.dtype,
        "slots": args.slots,
        "weights": args.weights,
    }
    settings = load_settings(**chosen)
    bench = Bench(args.workload, args.repeat, settings)
    measured = measure(
        bench, lambda: run_end_to_end(args.workload, args.repeat, settings), args.rounds
    )
    figures = {**asdict(measured), "end_to_end_share": measured.end_to_end_share}
    table = Table("figure", "value")
    for name, value in figures.items():
        table.add_row(name, "-" if value is None else f"{value:.3f}")
    Console().print(table)
    if args.json:
        args.json.write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()
