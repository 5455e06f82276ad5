"""``python -m bench.engine WORKLOAD``: the engine alone and end to end, on a file of batch requests.

Alone, this process feeds the engine directly; end to end, ``millpond run-batch`` does the same rows
through a queue and a worker of its own. Loading and warming up are not counted in either. Both are
measured twice: with the file's rows as they are, and with the same rows sampled.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import orjson
from rich.console import Console
from rich.table import Table

from bench.end_to_end import EndToEnd, run_end_to_end
from bench.workload import Line, read_lines, sampled
from millpond.messages import JobRequest
from millpond.models.prompts import prepare_prompt
from millpond.openai.batch_file import Row, read_rows
from millpond.settings import Settings, load_settings
from worker.assembly import prepare_folder, worker_engine
from worker.engines.base import Engine, Finished, GenerationRequest, Sampling
from worker.grouping import cut_groups

SINGLE_ROW_TOKENS = 65


@dataclass(frozen=True, slots=True)
class Measured:
    """One way to run the rows. A step's ``cpu_ms`` are those of all threads. ``slot_share`` is rows over
    slots in the steps while more rows waited. None: not measured, or none ever waited."""

    tokens_per_s: float
    prefill_tokens_per_s: float | None = None
    decode_step_ms: float | None = None
    decode_step_cpu_ms: float | None = None
    slot_share: float | None = None


class Bench:
    def __init__(self, settings: Settings) -> None:
        started_s = time.perf_counter()
        self._preset = settings.preset()
        self._tokenizer, build = worker_engine(
            settings, self._preset, prepare_folder(settings, self._preset)
        )
        self._settings = settings
        self._engine: Engine = build()
        self._engine.warm_up()
        self.load_s = time.perf_counter() - started_s

    def rows(self, lines: Sequence[Line]) -> list[GenerationRequest]:
        rows = read_rows((orjson.dumps(line) for line in lines), any_model=True)
        jobs = [row.request for row in rows if isinstance(row, Row)]
        return [self._row(f"{i}", job) for i, job in enumerate(jobs)]

    def _row(self, row_id: str, job: JobRequest) -> GenerationRequest:
        prompt = prepare_prompt(job, self._preset, self._tokenizer)
        sampling = Sampling(
            max_tokens=prompt.max_tokens,
            seed=job.seed or 0,
            temperature=job.temperature or 0.0,
            top_p=1.0 if job.top_p is None else job.top_p,
            ignore_eos=job.ignore_eos,
        )
        return GenerationRequest(row_id, prompt.token_ids, sampling)

    def run_alone(self, requests: Sequence[GenerationRequest]) -> Measured:
        """All rows through the engine, free slots filled at once and in order of arrival."""
        engine, waiting = self._engine, list(requests)
        slots = engine.info.slots
        tokens = decode_steps = full_rows = full_steps = 0
        prefill_s = decode_s = decode_cpu_s = 0.0
        started: set[str] = set()
        started_s = time.perf_counter()
        while waiting or engine.num_rows:
            waiting = self._admit(waiting)
            cpu_s, step_s = time.process_time(), time.perf_counter()
            events = engine.step()
            cpu_s, step_s = time.process_time() - cpu_s, time.perf_counter() - step_s
            decoded = {event.id for event in events} & started
            started.update(event.id for event in events)
            if decoded:
                decode_s, decode_steps = decode_s + step_s, decode_steps + 1
                decode_cpu_s += cpu_s
                if waiting:
                    full_rows, full_steps = full_rows + len(decoded), full_steps + 1
            else:
                prefill_s += step_s
            for event in events:
                if isinstance(event, Finished):
                    tokens += len(event.token_ids)
        prompts = sum(len(request.prompt_token_ids) for request in requests)
        return Measured(
            tokens_per_s=tokens / (time.perf_counter() - started_s),
            prefill_tokens_per_s=prompts / prefill_s,
            decode_step_ms=1000 * decode_s / max(1, decode_steps),
            decode_step_cpu_ms=1000 * decode_cpu_s / max(1, decode_steps),
            slot_share=full_rows / (slots * full_steps) if full_steps else None,
        )

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

    def run_one_row(self, prompt_token_ids: Sequence[int]) -> float:
        """Milliseconds for each output token of a greedy row alone."""
        sampling = Sampling(max_tokens=SINGLE_ROW_TOKENS, seed=0, ignore_eos=True)
        rejections = self._engine.admit([GenerationRequest("one", prompt_token_ids, sampling)])
        assert not rejections
        self._engine.step()
        times = []
        while self._engine.num_rows:
            started_s = time.perf_counter()
            self._engine.step()
            times.append(time.perf_counter() - started_s)
        return 1000 * statistics.median(times)


def median(runs: Sequence[Measured]) -> Measured:
    """Of each figure, over the runs that have it."""
    found: dict[str, float] = {}
    for name in [field.name for field in fields(Measured)]:
        values = [value for run in runs if (value := getattr(run, name)) is not None]
        if values:
            found[name] = statistics.median(values)
    return Measured(**found)


def share(runs: Sequence[Measured], others: Sequence[Measured]) -> float:
    """Tokens per second beside those of another way in the same round: the median of the rounds."""
    return statistics.median(
        run.tokens_per_s / other.tokens_per_s for run, other in zip(runs, others, strict=True)
    )


def through_queue(lines: Sequence[Line], settings: Settings) -> Measured:
    run: EndToEnd = run_end_to_end(lines, settings)
    return Measured(tokens_per_s=run.tokens_per_s, slot_share=run.slot_share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", type=Path, help="OpenAI batch lines (JSONL)")
    parser.add_argument("--model")
    parser.add_argument("--dtype")
    parser.add_argument("--weights", choices=("auto", "int8"), default="auto")
    parser.add_argument("--cpu-isa", help="the most that our kernels use of the processor")
    parser.add_argument("--slots", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=1, help="the file so often: a deep queue")
    parser.add_argument("--temperature", type=float, default=0.6, help="of the sampled rows")
    parser.add_argument("--top-p", type=float, default=0.95, help="of the sampled rows")
    parser.add_argument("--alone", action="store_true", help="leave the queue out")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    names = ("model", "dtype", "slots", "weights", "cpu_isa")
    # The rounds repeat the rows, which would be drafted from the round before.
    settings = load_settings(**{name: getattr(args, name) for name in names}, speculative_tokens=0)
    bench = Bench(settings)
    as_they_are = read_lines(args.workload, repeat=args.repeat)
    kinds = {
        "greedy": as_they_are,
        "sampled": sampled(as_they_are, temperature=args.temperature, top_p=args.top_p),
    }
    rows = {kind: bench.rows(lines) for kind, lines in kinds.items()}
    runs: dict[str, list[Measured]] = {}
    single_row_ms = []
    for _ in range(args.rounds):
        for kind in kinds:
            runs.setdefault(kind, []).append(bench.run_alone(rows[kind]))
        single_row_ms.append(bench.run_one_row(rows["greedy"][0].prompt_token_ids))
        for kind, lines in kinds.items():
            if not args.alone:
                run = through_queue(lines, settings)
                runs.setdefault(f"{kind}, end to end", []).append(run)
    medians = {way: asdict(median(found)) for way, found in runs.items()}
    single = {"single_row_token_ms": statistics.median(single_row_ms), "load_s": bench.load_s}
    shares = {
        f"{way} beside {other}": share(runs[way], runs[other])
        for way, other in (
            ("sampled", "greedy"),
            ("sampled, end to end", "greedy, end to end"),
            ("greedy, end to end", "greedy"),
            ("sampled, end to end", "sampled"),
        )
        if way in runs
    }
    table = Table("figure", *medians)
    for field in fields(Measured):
        values = [figures[field.name] for figures in medians.values()]
        table.add_row(field.name, *("-" if value is None else f"{value:.3f}" for value in values))
    Console().print(table)
    for name, value in (shares | single).items():
        Console().print(f"{name}: {value:.3f}")
    if args.json:
        figures = {"ways": medians, "shares": shares, **single}
        args.json.write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()
