"""Records that vanish under load. Row 27 of docs/reliability.md."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from millpond.local.server import RedisServer, ServerOptions, bundled_server, free_port
from millpond.messages import JobStatus
from tests.chaos.fleet import Fleet, Ledger, ledger_on, worker_settings
from tests.chaos.test_workers import jobs, size, sweeping
from tests.contract.jobs import until


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    options = ServerOptions(tmp_path / "redis", free_port(), append_fsync="no")
    async with RedisServer(options, bundled_server()) as running:
        yield running


async def claims(ledger: Ledger) -> int:
    """Scripts that the server has run so far."""
    stats = await ledger.redis.info("commandstats")
    return sum(
        int(stats.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in ("eval", "evalsha")
    )


async def test_records_vanish(server: RedisServer, tmp_path: Path) -> None:
    """Row 27: one record in fifty is deleted while it waits or runs. The other jobs succeed, no worker
    ends, the counters come back to nothing, and idle workers do not spin on what is gone."""
    settings = worker_settings(server, lease_s=0.5, heartbeat_s=0.1)
    chance = random.Random(26)
    number, lost = size(10_000, 500), size(200, 10)
    async with (
        ledger_on(server, settings.queue_options()) as ledger,
        Fleet(settings, size(3, 2), tmp_path / "workers.log") as fleet,
        sweeping(ledger, settings.heartbeat_s),
    ):
        ids = await ledger.submit(jobs(number, tokens=100))
        gone = set()
        for id in chance.sample(ids, lost):
            view = await ledger.results.get(id)
            if not view.status.terminal:
                await ledger.redis.delete(ledger.queue.keys.job(id))
                gone.add(id)
        await ledger.all_ended(300.0)
        for id in gone & set(await ledger.results.get_results(list(gone))):
            gone.discard(id)  # it ended in the moment between the look and the deletion
        assert gone, "something was lost"
        for id in gone:
            del ledger.requests[id]
        statuses = await ledger.check(least_succeeded=1.0)
        assert statuses[JobStatus.SUCCEEDED] == number - len(gone)

        async def settled() -> bool:
            state = await ledger.results.queue_state()
            return state.missing >= len(gone) and state.unfinished == {}

        await until(settled, 30.0)
        assert fleet.starts == size(3, 2), "no worker was restarted"
        before = await claims(ledger)
        await asyncio.sleep(1.0)  # a span of time, over which is counted
        spun = await claims(ledger) - before
        print(f"{len(gone)} of {number} records deleted; {spun} scripts in an idle second")
        assert spun < 200
