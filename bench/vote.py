"""``python -m bench.vote``: what a vote that ends early saves, and that it answers as the full one does.

The same arithmetic problems with the same seeds twice: eight texts of each with ``vote``, and eight without,
whose votes are counted here when all have ended. By a worker in this process, on the simulated engine, whose
texts are made up (their lengths log-normal, three of five answers right), and on a real model.
"""

import argparse
import asyncio
import contextlib
import logging
import math
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from rich.console import Console
from rich.table import Table

from bench.stage import Stage, stage
from millpond.messages import FinishReason, JobRequest, JobResult, choice_seed
from millpond.models.presets import PRESETS, Preset
from millpond.models.tokenization import ByteTokenizer, Tokenizer
from millpond.queue.results import Results
from millpond.queue.submission import NewJob
from millpond.queue.subscriptions import Subscriptions
from millpond.settings import load_settings
from worker.assembly import prepare_folder, worker_engine
from worker.engines.base import Engine, EngineConfig, Sampling
from worker.engines.simulated import SimulatedConfig, SimulatedCosts, SimulatedEngine
from worker.voting.answers import answer_finder
from worker.voting.vote import Vote
from worker.window import WindowPolicy
from worker.worker import Worker, WorkerOptions

TEXTS = 8
SLOTS = 64
WAIT_S = 3_600.0
# The last number of a text; small models do not keep to a form.
LAST_NUMBER = r"(-?\d[\d,]*)\D*$"
MEDIAN_TOKENS, SPREAD = 120, 0.6
RIGHT_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class Problem:
    """``seed`` is that of its job."""

    seed: int
    question: str
    answer: int


def problems(number: int) -> list[Problem]:
    rng = random.Random(1)
    found = []
    for seed in range(number):
        one, other, sign = rng.randrange(2, 30), rng.randrange(2, 30), rng.choice("+-")
        answer = one + other if sign == "+" else one - other
        question = f"Calculate {one} {sign} {other} and put the result in \\boxed{{}}."
        found.append(Problem(seed, question, answer))
    return found


@dataclass(frozen=True, slots=True)
class Contestant:
    """An engine, and how its texts are asked for and vote."""

    name: str
    preset: Preset
    tokenizer: Tokenizer
    build: Callable[[], Engine]
    fields: dict[str, Any]


def simulated(asked: Sequence[Problem]) -> Contestant:
    of_seed = {choice_seed(p.seed, i): p for p in asked for i in range(TEXTS)}

    def write(prompt: Sequence[int], sampling: Sampling) -> bytes:
        rng = random.Random(sampling.seed)
        length = min(1_000, round(rng.lognormvariate(math.log(MEDIAN_TOKENS), SPREAD)))
        right = of_seed[sampling.seed].answer
        said = right if rng.random() < RIGHT_SHARE else right + rng.choice((-10, -1, 1, 10))
        return b"m" * length + rb" \boxed{%d}" % said

    tokenizer, preset = ByteTokenizer(), PRESETS["simulated"]
    config = EngineConfig("simulated", None, preset, slots=SLOTS)
    made = SimulatedConfig(SimulatedCosts.free(), write=write)
    fields = {"vote": "boxed", "max_tokens": 1_100}
    return Contestant(
        "simulated", preset, tokenizer, lambda: SimulatedEngine(config, tokenizer, made), fields
    )


def model(name: str) -> Contestant:
    settings = load_settings(model=name, slots=SLOTS)
    preset = settings.preset()
    tokenizer, build = worker_engine(settings, preset, prepare_folder(settings, preset))
    fields = {
        "vote": "regex",
        "vote_pattern": LAST_NUMBER,
        "temperature": 0.7,
        "max_tokens": 256,
    }
    return Contestant(name, preset, tokenizer, build, fields)


@contextlib.asynccontextmanager
async def working(on: Stage, contestant: Contestant) -> AsyncIterator[None]:
    worker = Worker(
        on.queue,
        contestant.build,
        contestant.tokenizer,
        contestant.preset,
        WorkerOptions("bench", WindowPolicy.at_once(SLOTS), turn_limit_s=120.0),
    )
    running = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.stop()
        await running


async def answers(on: Stage, results: Results, jobs: Sequence[JobRequest]) -> list[JobResult]:
    submissions = await on.queue.submit_many([NewJob(job) for job in jobs])
    found = []
    for submission in submissions:
        assert not isinstance(submission, Exception)
        result = (await results.wait(submission.id, WAIT_S)).result
        assert result is not None
        assert result.error is None
        found.append(result)
    return found


def full_vote(result: JobResult, fields: dict[str, Any]) -> str | None:
    """By all texts of a job that did not vote itself."""
    asked = JobRequest(prompt="p", n=TEXTS, **fields)
    assert asked.vote is not None
    vote = Vote(answer_finder(asked.vote, asked.vote_pattern), TEXTS)
    for choice in result.choices or ():
        whole = choice.finish_reason is FinishReason.STOP
        vote.ended(choice.index, choice.text if whole else None)
    return None if vote.winner is None else vote.winner.answer


@dataclass(frozen=True, slots=True)
class Outcome:
    early: list[JobResult]
    full: list[JobResult]


async def measure(on: Stage, contestant: Contestant, asked: Sequence[Problem]) -> Outcome:
    votes = ("vote", "vote_pattern")
    plain = {name: value for name, value in contestant.fields.items() if name not in votes}
    runs: list[list[JobResult]] = []
    subscriptions = Subscriptions(on.redis)
    results = Results(on.redis, on.queue.keys.queue, subscriptions)
    async with working(on, contestant):
        for fields in (contestant.fields, plain):
            jobs = [
                JobRequest(prompt=p.question, n=TEXTS, seed=p.seed, stream=False, **fields)
                for p in asked
            ]
            runs.append(await answers(on, results, jobs))
    await subscriptions.close()
    return Outcome(*runs)


def tokens_of(results: Sequence[JobResult]) -> int:
    return sum(result.usage.completion_tokens for result in results if result.usage)


def row(contestant: Contestant, asked: Sequence[Problem], found: Outcome) -> list[str]:
    full = [full_vote(result, contestant.fields) for result in found.full]
    early = [result.vote.answer if result.vote else None for result in found.early]
    same = sum(one == other for one, other in zip(early, full, strict=True))
    right = sum(a == str(p.answer) for a, p in zip(early, asked, strict=True))
    first = sum(_first_is_right(r, p, contestant) for r, p in zip(found.full, asked, strict=True))
    written, all_ = tokens_of(found.early), tokens_of(found.full)
    cancelled = sum(len(result.vote.cancelled) for result in found.early if result.vote)
    told = sum(r.receipt.saved_tokens or 0 for r in found.early if r.receipt)
    return [
        contestant.name,
        f"{same} of {len(asked)}",
        f"{right}, {first}",
        f"{cancelled} of {len(asked) * TEXTS}",
        f"{written:,} of {all_:,}",
        f"{1 - written / all_:.1%}",
        f"{told / all_:.1%}",
    ]


def _first_is_right(result: JobResult, problem: Problem, contestant: Contestant) -> bool:
    request = JobRequest(prompt="p", n=TEXTS, **contestant.fields)
    assert request.vote is not None
    find = answer_finder(request.vote, request.vote_pattern)
    return find(result.text) == str(problem.answer)


async def run(options: argparse.Namespace) -> Table:
    asked = problems(options.problems)
    contestants = [simulated(asked)]
    if options.model != "none":
        contestants.append(model(options.model))
    table = Table(title=f"{len(asked)} problems, {TEXTS} texts of each, {SLOTS} slots")
    for column in (
        *("engine", "same answer", "right: vote, first text", "texts cancelled"),
        *("tokens", "saved", "saved_tokens"),
    ):
        table.add_column(column)
    for contestant in contestants:
        with tempfile.TemporaryDirectory(prefix="millpond-bench-") as folder:
            async with stage(Path(folder)) as on:
                table.add_row(*row(contestant, asked, await measure(on, contestant, asked)))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.vote", description=__doc__)
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--model", default="smollm2-135m", help="or none (%(default)s)")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    Console(width=160).print(asyncio.run(run(options)))


if __name__ == "__main__":
    main()
