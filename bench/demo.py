"""``make demo``: start the embedded stack, answer twelve prompts three ways, measure, stop.

All jobs go in at once over REST. One is followed live over SSE, one by a plain Redis subscriber, the
rest by long polling. Then the same prompts run one at a time, and both ways stand side by side.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
from redis.asyncio import Redis
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from bench.prompts import DEMO_PROMPTS
from millpond.local.stack import Stack, running_stack
from millpond.local.stack_events import StackEvent
from millpond.messages import JobResult
from millpond.messages.stored_results import unpack
from millpond.queue.keys import Keys
from millpond.settings import Settings, load_settings

MAX_TOKENS = 64
READY_TIMEOUT_S = 300.0
JOB_TIMEOUT_S = 120.0
FOLLOWED_LIVE = 7
SUBSCRIBED = 8

console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Measured:
    """One way of running the prompts: all results, the wall time, and each job's latency."""

    results: list[dict[str, Any]]
    seconds: float
    latencies_s: list[float]

    @property
    def tokens_per_s(self) -> float:
        return float(sum(r["usage"]["completion_tokens"] for r in self.results) / self.seconds)

    @property
    def batch_rows(self) -> float:
        """Rows that were decoded together, the mean over the prompts."""
        return float(statistics.mean(r["receipt"]["batch_rows"] for r in self.results))


async def submit(http: httpx.AsyncClient, prompt: str) -> str:
    answer = await http.post("/v1/jobs", json={"prompt": prompt, "max_tokens": MAX_TOKENS})
    answer.raise_for_status()
    return str(answer.json()["id"])


async def poll(http: httpx.AsyncClient, id: str) -> dict[str, Any]:
    """Long-poll until the job has ended; its stored result."""
    while True:
        answer = await http.get(f"/v1/jobs/{id}", params={"wait": 30})
        answer.raise_for_status()
        job: dict[str, Any] = answer.json()
        if job["status"] not in ("queued", "running"):
            if job["status"] != "succeeded":
                raise RuntimeError(f"job {id} is {job['status']}: {job}")
            result: dict[str, Any] = job["result"]
            return result


async def follow_live(http: httpx.AsyncClient, id: str) -> int:
    """Print a job's text as it comes over SSE; the number of pieces."""
    pieces = 0
    console.print("\n[bold]Live over SSE:[/bold] ", end="")
    async with http.stream("GET", f"/v1/jobs/{id}/events") as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data:"):
                continue
            event = orjson.loads(line.removeprefix("data:"))
            if event["type"] == "delta":
                pieces += 1
                console.print(escape(event["text"]), end="")
            elif event["type"] == "finished":
                break
    console.print(f"\n[dim]({pieces} pieces)[/dim]\n")
    return pieces


async def subscribe(redis_url: str, keys: Keys, id: str, subscribed: asyncio.Event) -> JobResult:
    """What a service without HTTP does: listen to the queue's channel, then read a result."""
    async with Redis.from_url(redis_url) as redis, redis.pubsub() as pubsub:
        await pubsub.subscribe(keys.events(id))
        async for message in pubsub.listen():
            if message["type"] == "subscribe":
                subscribed.set()
            elif orjson.loads(message["data"])["type"] == "finished":
                stored: Any = await redis.get(keys.result(id))
                return unpack(stored)
    raise RuntimeError("the subscription ended")


async def batched(stack: Stack, http: httpx.AsyncClient) -> Measured:
    """All prompts at once. Latency is from submit to finish, by the server's clock of the results."""
    start = time.perf_counter()
    ids = await asyncio.gather(*(submit(http, prompt) for prompt in DEMO_PROMPTS))
    keys, heard, subscribed = Keys(stack.settings.queue), ids[SUBSCRIBED], asyncio.Event()
    listener = asyncio.create_task(subscribe(stack.redis_url, keys, heard, subscribed))
    await subscribed.wait()
    live = asyncio.create_task(follow_live(http, ids[FOLLOWED_LIVE]))

    async def timed(id: str) -> tuple[dict[str, Any], float]:
        return await poll(http, id), time.perf_counter() - start

    done = await asyncio.gather(*(timed(id) for id in ids))
    seconds = time.perf_counter() - start
    await live
    result = await listener
    console.print(f"[bold]A Redis subscriber heard on {escape(keys.events(heard))}:[/bold]")
    console.print(f"  {escape(' '.join(result.text.split()))}\n")
    return Measured([job for job, _ in done], seconds, [s for _, s in done])


async def one_at_a_time(http: httpx.AsyncClient) -> Measured:
    results, latencies = [], []
    start = time.perf_counter()
    for prompt in DEMO_PROMPTS:
        began = time.perf_counter()
        results.append(await poll(http, await submit(http, prompt)))
        latencies.append(time.perf_counter() - began)
    return Measured(results, time.perf_counter() - start, latencies)


def show_answers(results: Sequence[dict[str, Any]]) -> None:
    for prompt, job in zip(DEMO_PROMPTS, results, strict=True):
        receipt = job["receipt"]
        title = " ".join(prompt.split())
        title = title if len(title) <= 80 else title[:77] + "..."
        usage = job["usage"]
        console.print(Panel(escape(job["text"].strip()), title=escape(title), title_align="left"))
        console.print(
            f"[dim]  {usage['prompt_tokens']} + {usage['completion_tokens']} tokens, "
            f"{job['finish_reason']}; waited {receipt['queue_wait_ms']:.0f} ms in a window of "
            f"{receipt['window_jobs']}, group of {receipt['group_rows']},\n  "
            f"batch of {receipt['batch_rows']:.1f} rows; "
            f"first token after {receipt['first_token_ms']:.0f} ms, all after "
            f"{receipt['run_ms']:.0f} ms; {receipt['backend']}, "
            f"{receipt['dtype']}, seed {receipt['seed']}[/dim]\n"
        )


def show_table(alone: Measured, together: Measured) -> None:
    table = Table(title="The same prompts, measured just now")
    for column in ("", "seconds", "tok/s", "rows", "p50 latency", "p95 latency"):
        table.add_column(column, justify="right" if column else "left")
    for name, run in (("one at a time", alone), ("windowed batch", together)):
        p95 = statistics.quantiles(run.latencies_s, n=20, method="inclusive")[-1]
        table.add_row(
            name,
            f"{run.seconds:.1f}",
            f"{run.tokens_per_s:.0f}",
            f"{run.batch_rows:.1f}",
            f"{statistics.median(run.latencies_s):.2f} s",
            f"{p95:.2f} s",
        )
    console.print(table)
    console.print(
        "Latency counts from a prompt's own submit; one at a time, nobody queues behind others.\n"
        f"Throughput: {together.tokens_per_s / alone.tokens_per_s:.1f} times as many tokens a second "
        "in batches."
    )


def tell(event: StackEvent) -> None:
    console.print(f"[dim]{escape(event.message)}[/dim]")


async def demo(settings: Settings) -> None:
    began = time.perf_counter()
    console.print("Starting Redis, the worker and the API (a first run converts the weights) ...")
    async with running_stack(settings, embedded_server=True, api=True, say=tell) as stack:
        worker = await stack.wait_ready(READY_TIMEOUT_S)
        console.print(
            f"Ready after {time.perf_counter() - began:.1f} s at {stack.api_url}: "
            f"{worker.model}, {worker.backend}, {worker.dtype}."
        )
        async with httpx.AsyncClient(base_url=stack.api_url, timeout=JOB_TIMEOUT_S) as http:
            together = await batched(stack, http)
            show_answers(together.results)
            alone = await one_at_a_time(http)
            show_table(alone, together)
    console.print("Everything is stopped.")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="millpond-demo-") as folder:
        # Answered a second time, the prompts would be drafted from their first answers.
        settings = load_settings(data_dir=Path(folder), grace_s=2.0, speculative_tokens=0)
        asyncio.run(demo(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
