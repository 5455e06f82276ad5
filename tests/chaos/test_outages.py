"""Row 5: a server that is loading, full or read-only, seen by a client of the API and by a worker.

What the queue does then is in tests/contract/test_queue_faults.py and test_full_server.py, a server that
is away or hangs in
tests/integration/test_api_outages.py.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from millpond.errors import QueueUnavailableError
from millpond.local.server import RedisServer, free_port
from millpond.queue.connection import connect
from millpond.settings import load_settings
from tests.chaos.fleet import Fleet, api_url, ledger_on, running_api, worker_settings
from tests.chaos.test_workers import jobs, size
from tests.chaos.test_workers import server as server  # the fixture
from tests.contract.invariants import check_invariants
from tests.contract.jobs import until

BODY = {"prompt": "hello", "max_tokens": 5}


def check_later(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert answer.json()["code"] == "queue_unavailable"
    assert int(answer.headers["retry-after"]) >= 1


async def test_full_and_read_only(server: RedisServer, tmp_path: Path) -> None:
    settings = worker_settings(server, port=free_port())
    redis = connect(server.url)
    async with (
        running_api(settings, tmp_path / "api.log"),
        httpx.AsyncClient(base_url=api_url(settings), timeout=30.0) as http,
    ):
        id = (await http.post("/v1/jobs", json=BODY)).json()["id"]

        await redis.config_set("maxmemory", "1mb")
        check_later(await http.post("/v1/jobs", json=BODY))
        check_later(await http.post("/v1/jobs/bulk", json={"jobs": [BODY]}))
        assert (await http.get(f"/v1/jobs/{id}")).json()["status"] == "queued"
        # What is accepted can still be ended, full or not.
        assert (await http.delete(f"/v1/jobs/{id}")).json()["status"] == "cancelled"
        await redis.config_set("maxmemory", "0")

        id = (await http.post("/v1/jobs", json=BODY)).json()["id"]
        await redis.replicaof("127.0.0.1", str(free_port()))
        check_later(await http.post("/v1/jobs", json=BODY))
        check_later(await http.delete(f"/v1/jobs/{id}"))
        await redis.replicaof("NO", "ONE")
        assert (await http.post("/v1/jobs", json=BODY)).status_code == 202
    await redis.aclose()


async def test_a_worker_on_a_full_server(server: RedisServer, tmp_path: Path) -> None:
    """It is full while streamed jobs run: each result is stored, nothing is taken from the worker."""
    settings = worker_settings(server)
    number = size(2_000, 200)
    async with (
        ledger_on(server, settings.queue_options()) as ledger,
        Fleet(settings, 1, tmp_path / "workers.log") as fleet,
    ):
        streamed = [r.model_copy(update={"stream": True}) for r in jobs(number, tokens=200)]
        await ledger.submit(streamed)
        await until(ledger.running)
        used = (await ledger.redis.info("memory"))["used_memory"]
        await ledger.redis.config_set("maxmemory", used - 100_000)
        with pytest.raises(QueueUnavailableError, match="maxmemory"):
            await ledger.queue.submit(streamed[0])
        [running, *_] = await ledger.redis.zrevrange(ledger.queue.keys["leases"], 0, 0)
        assert await ledger.queue.cancel(running.decode()) is not None
        await ledger.all_ended(60.0)
        state = await ledger.results.queue_state()
        assert [worker.alive for worker in state.workers] == [True]
        assert (await ledger.redis.info("memory"))["used_memory"] > used - 100_000, "never full"
        statuses = await ledger.check(least_succeeded=(number - 1) / number)
        assert sum(statuses.values()) == number
        assert not ledger.resets
        assert fleet.starts == 1, "no worker was restarted"
        await ledger.redis.config_set("maxmemory", "0")
        await check_invariants(ledger.redis, ledger.queue.keys)
        print(f"{dict(statuses)} on a server that was full from {used:,} bytes on")


@asynccontextmanager
async def loading_server(port: int) -> AsyncIterator[None]:
    """Answers each command as a server does that reads its file after a start."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while commands := await reader.read(65_536):
            number = commands.count(b"*")
            writer.write(b"-LOADING Redis is loading the dataset in memory\r\n" * number)
        writer.close()

    running = await asyncio.start_server(answer, "127.0.0.1", port)
    try:
        yield
    finally:
        running.close()


async def test_loading(tmp_path: Path) -> None:
    port = free_port()
    settings = load_settings(
        redis_url=f"redis://127.0.0.1:{port}/0", engine="simulated", port=free_port()
    )
    async with (
        loading_server(port),
        running_api(settings, tmp_path / "api.log"),
        httpx.AsyncClient(base_url=api_url(settings), timeout=30.0) as http,
    ):
        check_later(await http.post("/v1/jobs", json=BODY))
        check_later(await http.get("/v1/jobs/abc"))
        assert (await http.get("/readyz")).status_code == 503
