"""Faults of the server and the API: killed at any moment while work goes on."""

import asyncio
import contextlib
import random
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from millpond.errors import QueueUnavailableError
from millpond.messages import JobRequest, JobStatus
from millpond.server import RedisServer, ServerOptions, bundled_server, free_port
from millpond.submission import NewJob, Submission
from tests.chaos.fleet import Fleet, Ledger, api_url, ledger_on, running_api, worker_settings
from tests.chaos.test_workers import jobs, size


async def submit_through_outages(ledger: Ledger, requests: list[JobRequest]) -> set[str]:
    """Submit one after the other; those that were answered, which is what is promised."""
    accepted = set()
    for request in requests:
        try:
            [answer] = await ledger.queue.submit_many([NewJob(request, tokens=100)])
        except QueueUnavailableError:
            continue
        assert isinstance(answer, Submission)
        accepted.add(answer.id)
        ledger.requests[answer.id] = request
    return accepted


async def kill_and_restart(server: RedisServer) -> None:
    assert server.pid is not None
    with contextlib.suppress(ProcessLookupError):
        await server.kill()
    await server.start()


@pytest.mark.parametrize("fsync", ["always", "everysec"])
async def test_the_server_is_killed(tmp_path: Path, fsync: str) -> None:
    """Rows 3 and 4. With `always` nothing that was accepted is lost; with `everysec` the loss is
    measured. Workers go on without a restart."""
    options = ServerOptions(tmp_path / "redis", free_port(), append_fsync=fsync)
    chance = random.Random(3)
    async with RedisServer(options, bundled_server()) as server:
        settings = worker_settings(server)
        async with (
            ledger_on(server, settings.queue_options()) as ledger,
            Fleet(settings, 2, tmp_path / "workers.log") as fleet,
        ):
            rounds = size(20, 2)
            submitting = asyncio.create_task(
                submit_through_outages(ledger, jobs(rounds * 400, tokens=60))
            )
            for _ in range(rounds):
                await asyncio.sleep(chance.uniform(0.3, 1.0))
                await kill_and_restart(server)
            accepted = await submitting
            await ledger.all_ended(120.0)
            lost = [id for id in accepted if await known(ledger, id) is None]
            print(f"fsync {fsync}: {rounds} kills, {len(accepted)} accepted, {len(lost)} lost")
            if fsync == "always":
                assert lost == []
            for id in lost:
                del ledger.requests[id]
            if fsync == "everysec":
                # A result that was seen may be lost with the last second and be made again.
                ledger.first_seen.clear()
                ledger.heard.clear()
            await ledger.check(least_succeeded=1.0)
            assert fleet.starts == 2, "no worker was restarted"


async def known(ledger: Ledger, id: str) -> bytes | None:
    stored: bytes | None = await ledger.redis.get(ledger.queue.keys.result(id))
    return stored


async def test_the_api_is_killed_under_retries(tmp_path: Path) -> None:
    """Row 7: SIGKILLs of the API under clients that retry with their key: each key is one job."""
    options = ServerOptions(tmp_path / "redis", free_port(), append_fsync="always")
    keys = size(2_000, 150)
    chance = random.Random(7)
    async with RedisServer(options, bundled_server()) as server:
        settings = worker_settings(server, port=free_port())
        async with (
            running_api(settings, tmp_path / "api.log") as api,
            ledger_on(server, settings.queue_options()) as ledger,
            Fleet(settings, 1, tmp_path / "workers.log"),
            httpx.AsyncClient(base_url=api_url(settings), timeout=5.0) as http,
        ):
            limit = asyncio.Semaphore(16)

            async def persist(number: int) -> str:
                async with limit:
                    ids = {await post(http, number) for _ in range(3)}
                assert len(ids) == 1, "one key gave several jobs"
                return ids.pop()

            clients = asyncio.gather(*(persist(number) for number in range(keys)))
            for _ in range(size(20, 2)):
                await asyncio.sleep(chance.uniform(1.2, 2.5) if not clients.done() else 0)
                if api.pid is not None:
                    with contextlib.suppress(ProcessLookupError):
                        api.signal(signal.SIGKILL)
            ids = await clients
            assert len(set(ids)) == keys
            state = await ledger.results.queue_state()
            assert sum(state.accepted.values()) == keys
            await ledger.all_ended(120.0)
            state = await ledger.results.queue_state()
            assert state.done[JobStatus.SUCCEEDED] == keys


async def post(http: httpx.AsyncClient, number: int) -> str:
    """Try until it is accepted, as a careful client does."""
    body: dict[str, Any] = {"prompt": f"job {number}", "max_tokens": 5}
    async with asyncio.timeout(90):
        while True:
            try:
                answer = await http.post(
                    "/v1/jobs", json=body, headers={"Idempotency-Key": f"key-{number}"}
                )
                if answer.status_code == 202:
                    return str(answer.json()["id"])
                assert answer.status_code == 503, answer.text
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
