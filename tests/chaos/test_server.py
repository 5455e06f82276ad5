"""Faults of the server and the API: killed at any moment while work goes on."""

import asyncio
import contextlib
import itertools
import random
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from millpond.errors import QueueUnavailableError
from millpond.local.server import RedisServer, ServerOptions, bundled_server, free_port
from millpond.messages import JobStatus
from millpond.queue.submission import NewJob, Submission
from tests.chaos.fleet import Fleet, Ledger, api_url, ledger_on, running_api, worker_settings
from tests.chaos.power import Power
from tests.chaos.test_workers import jobs, size

# What docs/reliability.md says of `everysec`, and of the clocks of two processes.
MAX_LOSS_S = 2.5


async def submit_through_outages(ledger: Ledger, over: asyncio.Event) -> dict[str, float]:
    """Submit some hundred jobs a second: those that were answered, which is what is promised, and
    when."""
    accepted_s = {}
    for request in itertools.cycle(jobs(400, tokens=60)):
        if over.is_set():
            break
        await asyncio.sleep(0.002)
        try:
            [answer] = await ledger.queue.submit_many([NewJob(request, tokens=100)])
        except QueueUnavailableError:
            continue
        assert isinstance(answer, Submission)
        accepted_s[answer.id] = time.monotonic()
        ledger.requests[answer.id] = request
    return accepted_s


@pytest.mark.parametrize("fault", ["killed", "powerless"])
@pytest.mark.parametrize("fsync", ["always", "everysec"])
async def test_the_server_dies(tmp_path: Path, fsync: str, fault: str) -> None:
    """Rows 3 and 4: the process alone is killed, or with it goes all that was not synced. With
    `always` nothing that was accepted is lost; with `everysec` the loss is measured: the server holds
    its writes back while a sync takes long, so even a kill alone loses some. Workers go on without a
    restart, within 5 s."""
    power = Power(bundled_server(), tmp_path)
    options = ServerOptions(tmp_path / "redis", free_port(), append_fsync=fsync)
    chance = random.Random(3)
    cuts_s, forgotten, back_s = [], [], []
    async with RedisServer(options, power.binary) as server:
        settings = worker_settings(server)
        async with (
            ledger_on(server, settings.queue_options()) as ledger,
            Fleet(settings, 2, tmp_path / "workers.log") as fleet,
        ):
            rounds = size(20, 2)
            over = asyncio.Event()
            submitting = asyncio.create_task(submit_through_outages(ledger, over))
            for _ in range(rounds):
                await asyncio.sleep(chance.uniform(0.3, 2.0))
                cuts_s.append(time.monotonic())
                if fault == "powerless":
                    forgotten.append(await power.cut(server))
                else:
                    await server.kill()
                await server.start()
                back_s.append(await until_a_job_ends(ledger))
            over.set()
            accepted_s = await submitting
            await ledger.all_ended(120.0)
            lost = [id for id in accepted_s if await known(ledger, id) is None]
            age_s = [min(c for c in cuts_s if c >= accepted_s[id]) - accepted_s[id] for id in lost]
            print(
                f"fsync {fsync}, {fault} {rounds} times: {len(accepted_s)} accepted, {len(lost)} lost, "
                f"accepted {max(age_s, default=0.0):.2f} s before at most; "
                f"{sum(forgotten)} bytes forgotten; a job ends {max(back_s):.2f} s after a start at most"
            )
            if fsync == "always":
                assert lost == []
            else:
                assert max(age_s, default=0.0) <= MAX_LOSS_S
                # A result that was seen may be lost with the last second and be made again.
                ledger.first_seen.clear()
                ledger.heard.clear()
            for id in lost:
                del ledger.requests[id]
            await ledger.check(least_succeeded=1.0)
            assert fleet.starts == 2, "no worker was restarted"
            assert max(back_s) <= 5.0


async def until_a_job_ends(ledger: Ledger) -> float:
    """How long it takes from now until one more job has ended; 0 when none is left."""
    start_s = time.monotonic()

    async def done() -> int:
        try:
            state = await ledger.results.queue_state()
        except QueueUnavailableError:
            return -1
        return -2 if state.depth + state.running == 0 else sum(state.done.values())

    async with asyncio.timeout(30):
        while (before := await done()) == -1:
            await asyncio.sleep(0.01)
        while before != -2 and (now := await done()) != -2 and now <= before:
            await asyncio.sleep(0.01)
    return time.monotonic() - start_s


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
