"""``python -m bench.machines``: many workers and API processes at one server.

The engine is simulated and only waits, as a processor that waits for its card: ``STEP_S`` a step, whatever
the batch. So a worker alone has a rate that more of them multiply, until the cores of this machine or the
one thread of the server are busy; the table says which. All jobs go through the API, in bulk, and keep no
stream.
"""

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import orjson
import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from bench.api_load import HOST, running_api
from bench.measure import prompts
from bench.stage import QUEUE, Stage, stage
from millpond.messages import JobStatus
from millpond.messages.worker_state import WorkerPhase
from millpond.queue.results import Results
from millpond.queue.subscriptions import Subscriptions
from millpond.settings import load_settings

STEP_S = 0.02
SLOTS = 64
TOKENS = 8
PROMPT_BYTES = 100
BULK = 1_000
CONNECTIONS = 8
MOST_QUEUED = 40_000
API_PROCESSES = 4
READY_TIMEOUT_S = 120.0
KINDS = ("server", "API", "workers", "load")


@dataclass(frozen=True, slots=True)
class Run:
    """``cpu_s`` of each kind of process."""

    workers: int
    jobs: int
    seconds: float
    cpu_s: Mapping[str, float]

    @property
    def rate(self) -> float:
        return self.jobs / self.seconds

    def cpu_us_a_job(self, kind: str) -> float:
        return self.cpu_s[kind] / self.jobs * 1e6


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.machines", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000, help="of the last run (%(default)s)")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2, 4, 6, 8, 10], help="(%(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of each run but the last (%(default)s)"
    )
    parser.add_argument(
        "--limit", type=float, default=900.0, help="seconds of any run (%(default)s)"
    )
    return parser.parse_args()


@contextlib.asynccontextmanager
async def running_workers(stage: Stage, number: int) -> AsyncIterator[list[int]]:
    """Their process ids, once all are ready."""
    settings = load_settings(
        redis_url=stage.url,
        queue=QUEUE,
        engine="simulated",
        slots=SLOTS,
        result_ttl_s=30.0,
        event_ttl_s=10.0,
        log_level="warning",
        simulated={
            "costs": {
                "prefill_s_per_token": 0.0,
                "decode_s_per_step": STEP_S,
                "decode_s_per_row": 0.0,
            }
        },
    )
    environment = {**os.environ, **settings.environment()}
    processes = [
        subprocess.Popen([sys.executable, "-m", "worker"], env=environment)  # noqa: ASYNC220
        for _ in range(number)
    ]
    results = Results(stage.redis, QUEUE, Subscriptions(stage.redis))
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            while True:
                workers = (await results.queue_state()).workers
                if sum(w.state.state is WorkerPhase.READY for w in workers) == number:
                    break
                await asyncio.sleep(0.05)
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            await asyncio.to_thread(process.wait)


class Load:
    """Posts bulks as long as it is told to, and no more than the queue should hold."""

    def __init__(self, stage: Stage, port: int) -> None:
        self._queue = stage.queue
        self._http = httpx.AsyncClient(base_url=f"http://{HOST}:{port}", timeout=60.0)
        fields = {"max_tokens": TOKENS, "ignore_eos": True, "stream": False}
        self._body = orjson.dumps({"jobs": [{"prompt": p, **fields} for p in TEXTS]})
        self.posted = 0

    async def post(self, most: int, until_s: float) -> None:
        """``most`` jobs, or those that can be posted until then."""

        async def post_some() -> None:
            while self.posted < most and time.perf_counter() < until_s:
                if await self._queue.depth() > MOST_QUEUED:
                    await asyncio.sleep(0.05)
                    continue
                self.posted += BULK
                answer = await self._http.post(
                    "/v1/jobs/bulk",
                    content=self._body,
                    headers={"Content-Type": "application/json"},
                )
                assert answer.json()["accepted"] == BULK, answer.text[:500]

        await asyncio.gather(*(post_some() for _ in range(CONNECTIONS)))
        await self._http.aclose()


TEXTS = prompts(BULK, PROMPT_BYTES)


async def measure(stage: Stage, workers: int, jobs: int, limit_s: float) -> Run:
    """So many jobs, or those that are done within the limit, from the first post to the last end."""
    await stage.clear()
    results = Results(stage.redis, QUEUE, Subscriptions(stage.redis))

    async def done() -> int:
        return (await results.queue_state()).done[JobStatus.SUCCEEDED]

    async with (
        running_api(stage.url, processes=API_PROCESSES) as port,
        running_workers(stage, workers) as pids,
    ):
        kinds = cpu_of(stage, pids)
        start = time.perf_counter()
        load = Load(stage, port)
        await load.post(jobs, start + limit_s)
        while (ended := await done()) < load.posted and time.perf_counter() < start + limit_s:
            await asyncio.sleep(0.05)
        seconds = time.perf_counter() - start
        after = cpu_of(stage, pids)
    return Run(workers, ended, seconds, {kind: after[kind] - kinds[kind] for kind in KINDS})


def cpu_of(stage: Stage, workers: list[int]) -> dict[str, float]:
    """Seconds of CPU so far, by kind."""
    own = psutil.Process()
    spent = dict.fromkeys(KINDS, 0.0)
    for process in [own, *own.children(recursive=True)]:
        times = process.cpu_times()
        kind = (
            "load"
            if process.pid == own.pid
            else "workers"
            if process.pid in workers
            else "server"
            if process.pid == stage.server_pid
            else "API"
        )
        spent[kind] += times.user + times.system
    return spent


def table(runs: list[Run]) -> Table:
    cores = os.cpu_count() or 1
    table = Table(title=f"{API_PROCESSES} API processes, {cores} cores for everything")
    for column in ("workers", "jobs", "jobs/s", "beside one", "cores busy"):
        table.add_column(column, justify="right")
    for kind in KINDS:
        table.add_column(f"{kind}, µs a job", justify="right")
    for run in runs:
        table.add_row(
            f"{run.workers}",
            f"{run.jobs:,}",
            f"{run.rate:,.0f}",
            f"{run.rate / runs[0].rate:.2f} times",
            f"{sum(run.cpu_s.values()) / run.seconds:.2f}",
            *(f"{run.cpu_us_a_job(kind):.0f}" for kind in KINDS),
        )
    return table


async def main_async(options: argparse.Namespace, console: Console) -> None:
    console.print(
        f"a worker does at most {SLOTS / (TOKENS * STEP_S):,.0f} jobs/s: {SLOTS} slots, {TOKENS} tokens "
        f"a job, {STEP_S * 1000:g} ms a step"
    )
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="millpond-bench-") as folder:
        async with stage(Path(folder)) as on:
            for workers in options.workers:
                # As many as this number of them would do if each did as much as one alone.
                rate = runs[0].rate if runs else SLOTS / (TOKENS * STEP_S)
                jobs = round(rate * workers * options.seconds)
                console.print(f"measuring: {workers} workers", style="dim")
                runs.append(await measure(on, workers, jobs, options.seconds * 2))
                console.print(f"  {runs[-1].rate:,.0f} jobs/s", style="dim")
            if options.jobs:
                console.print(f"measuring: {options.jobs:,} jobs", style="dim")
                runs.append(await measure(on, max(options.workers), options.jobs, options.limit))
    console.print(table(runs))


def main() -> int:
    options = arguments()
    uvloop.run(main_async(options, Console(width=None if sys.stdout.isatty() else 150)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
