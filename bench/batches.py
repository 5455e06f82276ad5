"""A batch of 50,000 lines over HTTP, from its upload to its output file, with an engine that costs nothing.

Server, worker, API, background worker and load share the cores. Meanwhile interactive jobs are sent, one at a
time: what they wait is set beside what they waited before the batch came.
"""

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil

from bench.measure import percentile, prompts
from millpond.local.stack import Stack, running_stack
from millpond.settings import load_settings

LINES = 50_000
PROMPT_BYTES = 200
MAX_TOKENS = 16
IDLE_JOBS = 100
EVERY_S = 0.1
LOOK_EVERY_S = 0.1
FREE = {
    "costs": {"prefill_s_per_token": 0.0, "decode_s_per_step": 0.0, "decode_s_per_row": 0.0},
    "tokens_per_step": MAX_TOKENS,
}
ENDED = ("completed", "failed", "expired", "cancelled")
GOAL_S, GOAL_MB, GOAL_WAIT_MS = 45.0, 300.0, 300.0
CHAT = "/v1/chat/completions"


def input_lines(number: int) -> Iterator[bytes]:
    for i, text in enumerate(prompts(number, PROMPT_BYTES)):
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": MAX_TOKENS}
        fields = {"custom_id": f"r{i}", "method": "POST", "url": CHAT, "body": body}
        yield orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


class Watch:
    """The memory and the processor time of each process of a stack, looked at again and again."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._before: dict[int, float] = {}
        self.peak_mb: dict[str, float] = defaultdict(float)
        self.cpu_s: dict[str, float] = defaultdict(float)

    async def run(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(LOOK_EVERY_S)

    def _look(self) -> None:
        cpu_s: dict[str, float] = defaultdict(float)
        for name, child in self._stack.children.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(child.pid)
                for one in (process, *process.children()):
                    self.peak_mb[name] = max(self.peak_mb[name], one.memory_info().rss / 1e6)
                    used_s = sum(one.cpu_times()[:2])
                    cpu_s[name] += used_s - self._before.setdefault(one.pid, used_s)
        self.cpu_s = cpu_s


async def interactive_wait_ms(http: httpx.AsyncClient) -> float:
    """From acceptance to a slot, as the receipt has it, of one job."""
    body = {"prompt": "hello", "max_tokens": 1, "priority": "interactive", "stream": False}
    accepted = await http.post("/v1/jobs", json=body)
    job = await http.get(accepted.headers["Location"], params={"wait": 30})
    return float(job.json()["result"]["receipt"]["queue_wait_ms"])


async def keep_asking(http: httpx.AsyncClient, waits_ms: list[float]) -> None:
    while True:
        waits_ms.append(await interactive_wait_ms(http))
        await asyncio.sleep(EVERY_S)


async def run_batch(http: httpx.AsyncClient, path: Path) -> dict[str, Any]:
    """From the upload to the end; the batch."""
    with path.open("rb") as lines:
        answer = await http.post("/v1/files", data={"purpose": "batch"}, files={"file": lines})
    body = {"input_file_id": answer.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
    batch = (await http.post("/v1/batches", json=body)).json()
    while batch["status"] not in ENDED:
        await asyncio.sleep(LOOK_EVERY_S)
        batch = (await http.get(f"/v1/batches/{batch['id']}")).json()
    return dict(batch)


async def measure(stack: Stack, folder: Path, number: int) -> None:
    path = folder / "in.jsonl"
    path.write_bytes(b"".join(input_lines(number)))
    watch = Watch(stack)
    async with httpx.AsyncClient(base_url=stack.api_url, timeout=60) as http:
        idle_ms = [await interactive_wait_ms(http) for _ in range(IDLE_JOBS)]
        busy_ms: list[float] = []
        beside = [asyncio.create_task(watch.run()), asyncio.create_task(keep_asking(http, busy_ms))]
        started_s = time.monotonic()
        batch = await run_batch(http, path)
        took_s = time.monotonic() - started_s
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        content = await http.get(f"/v1/files/{batch['output_file_id']}/content")
    ids = {orjson.loads(line)["custom_id"] for line in content.content.splitlines()}
    assert batch["status"] == "completed", batch
    assert len(content.content.splitlines()) == len(ids) == number
    cores = os.cpu_count() or 1
    print(f"{number:,} lines ({path.stat().st_size / 1e6:.1f} MB), from upload to output file:")
    print(f"  {took_s:.1f} s, {number / took_s:,.0f} lines/s (goal {GOAL_S:g} s)")
    spent_s = ", ".join(f"{name} {s:.1f}" for name, s in sorted(watch.cpu_s.items()))
    whole_s = sum(watch.cpu_s.values())
    print(f"  processor seconds: {spent_s}; {whole_s:.1f} in all, on {cores} cores")
    for name in ("api", "background"):
        print(f"  peak memory of {name}: {watch.peak_mb[name]:.0f} MB (goal {GOAL_MB:g})")
    added_ms = percentile(busy_ms, 0.95) - percentile(idle_ms, 0.95)
    print(
        f"  an interactive job waits, p95: {percentile(busy_ms, 0.95):.1f} ms meanwhile "
        f"({len(busy_ms)} jobs), {percentile(idle_ms, 0.95):.1f} ms before: "
        f"{added_ms:.1f} ms added (goal {GOAL_WAIT_MS:g})"
    )


async def main(number: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = load_settings(
            {"simulated": json.dumps(FREE)},
            engine="simulated",
            data_dir=folder / "data",
            port=0,
            log_level="warning",
        )
        async with running_stack(
            settings, embedded_server=True, api=True, say=lambda _: None
        ) as stack:
            await stack.wait_ready(60)
            await measure(stack, folder, number)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else LINES))
