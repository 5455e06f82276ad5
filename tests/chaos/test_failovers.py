"""Row 31: the primary is killed under load, and Sentinel or the cluster puts a replica in its place."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from millpond.local.server import RedisServer, bundled_server, free_port
from millpond.queue.keys import Keys
from tests.chaos.fleet import QUEUE, Fleet, api_url, ledger_on, running_api, worker_settings
from tests.chaos.test_server import known, submit_through_outages, until_a_job_ends
from tests.chaos.test_workers import size
from tests.conftest import debian_server, skip_or_fail
from tests.contract.jobs import until
from tests.replicated import LIMIT_S, Replicated, in_cluster, under_sentinels

SERVERS = ("redis7", "valkey")
REPLICAS = {"sentinel": 2, "cluster": 1}
# Until the others agree that the primary is dead, elect and promote one.
MAX_PAUSE_S = 20.0


@asynccontextmanager
async def replicated(kind: str, server: str, folder: Path) -> AsyncIterator[Replicated]:
    binary = debian_server() if server == "redis7" else bundled_server()
    if binary is None:
        skip_or_fail(f"no server binary for {server}")
    assert binary is not None
    if kind == "sentinel":
        async with under_sentinels(folder, binary, REPLICAS[kind]) as group:
            yield group
    else:
        async with in_cluster(folder, binary) as cluster:
            yield cluster


@pytest.mark.parametrize(
    ("kind", "server", "submit_replicas"),
    size(
        [
            (kind, server, wanted)
            for kind, server in itertools.product(REPLICAS, SERVERS)
            for wanted in range(REPLICAS[kind] + 1)
        ],
        [("sentinel", "redis7", 2), ("cluster", "valkey", 1)],
    ),
)
async def test_a_primary_is_killed(
    tmp_path: Path, kind: str, server: str, submit_replicas: int
) -> None:
    """API and workers go on with the promoted replica, without a restart. What is lost is counted: nothing
    where submits wait for all replicas, else what the promoted one had not got."""
    rounds, chance = size(10, 1), random.Random(31)
    async with replicated(kind, server, tmp_path) as group:
        settings = worker_settings(
            group, port=free_port(), submit_replicas=submit_replicas, lease_s=5.0, heartbeat_s=0.5
        )
        key = Keys(QUEUE).counts
        cuts_s, back_s = [], []
        async with (
            running_api(settings, tmp_path / "api.log") as api,
            ledger_on(group, settings.queue_options()) as ledger,
            Fleet(settings, 2, tmp_path / "workers.log") as fleet,
            httpx.AsyncClient(base_url=api_url(settings), timeout=30.0) as http,
        ):
            first_api = api.pid
            over = asyncio.Event()
            submitting = asyncio.create_task(submit_through_outages(ledger, over))
            for _ in range(rounds):
                await asyncio.sleep(chance.uniform(0.5, 2.0))
                cuts_s.append(time.monotonic())
                killed = await group.kill_primary_of(key)
                await until(lambda killed=killed: promoted(group, killed), LIMIT_S)  # type: ignore[misc]
                await until_a_job_ends(ledger)
                back_s.append(time.monotonic() - cuts_s[-1])
                await group.bring_back(killed, key, REPLICAS[kind])
                await until(lambda: accepts(http), LIMIT_S)
            over.set()
            accepted_s = await submitting
            await ledger.all_ended(120.0)
            lost = [id for id in accepted_s if await known(ledger, id) is None]
            age_s = [
                min((c for c in cuts_s if c >= accepted_s[id]), default=time.monotonic())
                - accepted_s[id]
                for id in lost
            ]
            print(
                f"{kind}, {server}, submit_replicas {submit_replicas}, {rounds} kills: "
                f"{len(accepted_s)} accepted, {len(lost)} lost, accepted {max(age_s, default=0.0):.2f} s "
                f"before at most; a job ends {max(back_s):.2f} s after a kill at most"
            )
            if submit_replicas == REPLICAS[kind]:
                assert lost == []
            for id in lost:
                del ledger.requests[id]
            # A result that was seen may be lost with the primary, and be made again.
            ledger.first_seen.clear()
            ledger.heard.clear()
            await ledger.check(least_succeeded=1.0)
            assert max(back_s) <= MAX_PAUSE_S
            assert fleet.starts == 2, "no worker was restarted"
            assert api.pid == first_api, "nor was the API"


async def promoted(group: Replicated, killed: RedisServer) -> bool:
    """Whether another has taken its place."""
    return await group.primary_of(Keys(QUEUE).counts) is not killed


async def accepts(http: httpx.AsyncClient) -> bool:
    answer = await http.post("/v1/jobs", json={"prompt": "hello", "max_tokens": 5})
    assert answer.status_code in (202, 503), answer.text
    return answer.status_code == 202
