"""Rows 15 and 17: real API processes, with clients that are cut off and clients that push."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from millpond.local.server import RedisServer, free_port
from millpond.messages import JobStatus
from tests.chaos.fleet import Fleet, api_url, ledger_on, running_api, worker_settings
from tests.chaos.test_workers import server as server  # the fixture
from tests.chaos.test_workers import size

LIMIT_S = 60.0


async def blocks(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Whole events as they came over the wire; what a cut left incomplete is dropped."""
    text = b""
    async for chunk in answer.aiter_raw():
        *whole, text = (text + chunk).split(b"\n\n")
        for block in whole:
            if not block.startswith((b":", b"retry:")):
                yield block


async def replay(http: httpx.AsyncClient, id: str) -> list[bytes]:
    async with http.stream("GET", f"/v1/jobs/{id}/events") as answer:
        return [block async for block in blocks(answer)]


class Reader:
    """Follows one job through many connections, going on each time from the last event it has."""

    def __init__(self, http: httpx.AsyncClient, id: str, chance: random.Random) -> None:
        self.http = http
        self.id = id
        self.chance = chance
        self.seen: list[bytes] = []
        self.cuts = 0

    async def follow(self, cuts: int) -> None:
        pause_s = self.chance.choice([0.0, 0.0, 0.02, size(300, 50) / 1000])
        async with asyncio.timeout(LIMIT_S):
            while not (self.seen and b"event: finished" in self.seen[-1]):
                headers = {}
                if self.seen:
                    last = self.seen[-1].split(b"\n")[0]
                    headers["Last-Event-ID"] = last.removeprefix(b"id: ").decode()
                left = self.chance.randint(1, 4) if self.cuts < cuts else 1_000_000
                await self.read(headers, left, pause_s if self.cuts < cuts else 0.0)

    async def read(self, headers: dict[str, str], left: int, pause_s: float) -> None:
        async with self.http.stream("GET", f"/v1/jobs/{self.id}/events", headers=headers) as answer:
            assert answer.status_code == 200
            async for block in blocks(answer):
                self.seen.append(block)
                left -= 1
                if left == 0 and b"event: finished" not in block:
                    self.cuts += 1
                    return  # the connection is closed in the middle of the stream
                await asyncio.sleep(pause_s)


async def test_streams_are_cut(server: RedisServer, tmp_path: Path) -> None:
    """Row 15: what a reader pieced together is what the replay says, byte for byte."""
    settings = worker_settings(server, port=free_port(), delta_interval_ms=5.0)
    chance = random.Random(15)
    async with (
        running_api(settings, tmp_path / "api.log"),
        Fleet(settings, size(2, 1), tmp_path / "workers.log") as fleet,
        httpx.AsyncClient(base_url=api_url(settings), timeout=LIMIT_S) as http,
    ):
        cuts = 0
        while cuts < size(1_000, 30):
            ids = [await submit(http, f"job {i}", 100 + i) for i in range(size(40, 6))]
            readers = [Reader(http, id, chance) for id in ids for _ in range(2)]
            following = asyncio.gather(*(reader.follow(cuts=5) for reader in readers))
            await asyncio.sleep(0.2)
            fleet.signal_one(signal.SIGKILL, chance)  # so that there are resets to be seen
            await following
            for reader in readers:
                assert reader.seen == await replay(http, reader.id)
                assert sum(b"event: finished" in block for block in reader.seen) == 1
            cuts += sum(reader.cuts for reader in readers)
        print(f"{cuts} cuts")


async def submit(http: httpx.AsyncClient, prompt: str, max_tokens: int) -> str:
    body = {"prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True}
    answer = await http.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def test_the_depth_limit_under_pressure(server: RedisServer, tmp_path: Path) -> None:
    """Row 17: two API processes, many clients. Never more than the limit, and 429 says when."""
    limit = size(1_000, 60)
    settings = [worker_settings(server, port=free_port(), max_depth=limit) for _ in range(2)]
    async with (
        running_api(settings[0], tmp_path / "api-0.log"),
        running_api(settings[1], tmp_path / "api-1.log"),
        httpx.AsyncClient(base_url=api_url(settings[0]), timeout=LIMIT_S) as one,
        httpx.AsyncClient(base_url=api_url(settings[1]), timeout=LIMIT_S) as other,
        ledger_on(server, settings[0].queue_options()) as ledger,
    ):
        refused = 0

        async def push(client: int, tries: int) -> int:
            nonlocal refused
            accepted = 0
            http = (one, other)[client % 2]
            for number in range(tries):
                if client % 4 == 0:
                    answers = await push_bulk(http, f"{client}-{number}")
                else:
                    body = {"prompt": f"{client}-{number}", "max_tokens": 5}
                    answers = [check_refusal(await http.post("/v1/jobs", json=body))]
                accepted += sum(answers)
                refused += len(answers) - sum(answers)
            return accepted

        clients, tries = 16, limit // 10
        accepted = sum(await asyncio.gather(*(push(c, tries) for c in range(clients))))
        assert (accepted, await ledger.queue.depth()) == (limit, limit)

        deepest = 0

        async def watch() -> None:
            nonlocal deepest
            while True:
                deepest = max(deepest, await ledger.queue.depth())
                await asyncio.sleep(0.001)

        watching = asyncio.create_task(watch())
        async with Fleet(settings[0], 1, tmp_path / "workers.log"):
            async with asyncio.timeout(LIMIT_S):
                while await ledger.queue.depth() == limit:
                    await asyncio.sleep(0.01)
            accepted += sum(await asyncio.gather(*(push(c, tries) for c in range(clients))))
            await ledger.all_ended(LIMIT_S)
        watching.cancel()
        assert deepest <= limit
        assert (await ledger.results.queue_state()).done[JobStatus.SUCCEEDED] == accepted
        print(f"limit {limit}: {accepted} accepted, {refused} refused, deepest {deepest}")


async def push_bulk(http: httpx.AsyncClient, name: str) -> list[bool]:
    """Three at once: each is taken or refused on its own."""
    jobs = [{"prompt": f"{name}-{i}", "max_tokens": 5} for i in range(3)]
    answer = await http.post("/v1/jobs/bulk", json={"jobs": jobs})
    assert answer.status_code == 200
    items: list[dict[str, Any]] = answer.json()["jobs"]
    for item in items:
        if item["status_code"] != 202:
            assert (item["status_code"], item["problem"]["code"]) == (429, "queue_full")
            assert item["problem"]["retry_after_s"] >= 1
    return [item["status_code"] == 202 for item in items]


def check_refusal(answer: httpx.Response) -> bool:
    """Whether it was accepted; a refusal says when to come back."""
    if answer.status_code == 202:
        return True
    assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
    assert int(answer.headers["retry-after"]) >= 1
    return False
