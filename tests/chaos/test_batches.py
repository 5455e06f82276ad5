"""Row 32: the API and RQ's worker are killed at random moments while a batch runs over HTTP."""

import asyncio
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil

from millpond.local.stack import Stack, running_stack
from millpond.queue.connection import connect
from millpond.queue.results import Results
from millpond.queue.subscriptions import Subscriptions
from millpond.settings import load_settings
from tests.chaos.test_workers import size

CHAT = "/v1/chat/completions"
ROWS = size(50_000, 1_500)
KILLS = size(20, 3)
# So that the batch outlives the kills, whatever the machine.
STEP_S = size(1, 20) / 1000
ENDED = ("completed", "failed", "expired", "cancelled")
LIMIT_S = size(600, 100)


async def ask(http: httpx.AsyncClient, method: str, path: str, **options: Any) -> httpx.Response:
    """As a client with patience: until the API is there again. A cut-off upload begins anew."""
    while True:
        try:
            answer = await http.request(method, path, **options)
        except httpx.HTTPError:
            await asyncio.sleep(0.1)
            continue
        if answer.status_code < 500:
            assert answer.status_code == 200, answer.text
            return answer
        await asyncio.sleep(0.1)


def kill(stack: Stack, name: str) -> None:
    """The processes that a service has forked, and the API itself; their parents start them again."""
    pid = stack.children[name].pid
    if pid is None:
        return
    service = psutil.Process(pid)
    for process in (*service.children(), *([service] if name == "api" else [])):
        process.kill()


async def test_a_batch_outlives_the_processes_that_run_it(tmp_path: Path) -> None:
    random.seed(11)
    costs = {"prefill_s_per_token": 0.0, "decode_s_per_step": STEP_S, "decode_s_per_row": 0.0}
    settings = load_settings(
        {"simulated": json.dumps({"costs": costs, "tokens_per_step": 4})},
        engine="simulated",
        data_dir=tmp_path,
        port=0,
        slots=32,
    )
    lines = b"".join(
        orjson.dumps(
            {
                "custom_id": f"r{i}",
                "method": "POST",
                "url": CHAT,
                "body": {"messages": [{"role": "user", "content": f"{i}"}], "max_tokens": 8},
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )
        for i in range(ROWS)
    )
    async with (
        running_stack(settings, embedded_server=True, api=True, say=lambda _: None) as stack,
        httpx.AsyncClient(base_url=stack.api_url, timeout=30) as http,
    ):
        await stack.wait_ready(60)
        form = {"data": {"purpose": "batch"}, "files": {"file": lines}}
        file = (await ask(http, "POST", "/v1/files", **form)).json()
        body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "1h"}
        batch = (await ask(http, "POST", "/v1/batches", json=body)).json()
        kills: Counter[str] = Counter()
        end_s = time.monotonic() + LIMIT_S
        while batch["status"] not in ENDED:
            assert time.monotonic() < end_s, f"after {dict(kills)} it is still {batch}"
            if kills.total() < KILLS:
                name = random.choice(["background", "background", "api"])
                kill(stack, name)
                kills[name] += 1
            await asyncio.sleep(random.uniform(0.2, 2.5))
            batch = (await ask(http, "GET", f"/v1/batches/{batch['id']}")).json()
        assert batch["status"] == "completed"
        content = await ask(http, "GET", f"/v1/files/{batch['output_file_id']}/content")
        redis = connect(stack.redis_url)
        subscriptions = Subscriptions(redis)
        state = await Results(redis, settings.queue, subscriptions).queue_state()
        await subscriptions.close()
        await redis.aclose()
    print(f"{ROWS:,} rows, {dict(kills)} killed")
    assert kills.total() == KILLS, "the batch was over too soon"
    ids = Counter(orjson.loads(line)["custom_id"] for line in content.content.splitlines())
    assert ids == {f"r{i}": 1 for i in range(ROWS)}, "each row is written once"
    assert sum(state.accepted.values()) == ROWS, "and was run once"
    counts = batch["request_counts"]
    assert counts == {"completed": ROWS, "failed": 0, "total": ROWS}
