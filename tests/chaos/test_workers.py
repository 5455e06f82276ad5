"""Faults of workers: killed, stopped, told to end, poisoned. The numbers are docs/reliability.md's.

`make chaos` runs the full sizes (MILLPOND_CHAOS=full), `make test` a short form of the same.
"""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeVar

import pytest

from millpond.messages import JobRequest, JobStatus
from millpond.server import RedisServer, ServerOptions, bundled_server, free_port
from tests.chaos.fleet import Fleet, ledger_on, worker_settings

T = TypeVar("T")
FULL = os.environ.get("MILLPOND_CHAOS") == "full"


def size(full: T, short: T) -> T:
    return full if FULL else short


def jobs(number: int, tokens: int = 40) -> list[JobRequest]:
    """Rows of 1 to ``tokens`` tokens: some end at once, some live through several steps."""
    return [
        JobRequest(prompt=f"job {i}", max_tokens=1 + i % tokens, ignore_eos=True, stream=i % 4 == 0)
        for i in range(number)
    ]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    options = ServerOptions(tmp_path / "redis", free_port(), append_fsync="always")
    async with RedisServer(options, bundled_server()) as running:
        yield running


async def test_random_kills(server: RedisServer, tmp_path: Path) -> None:
    """Row 1: SIGKILL at random moments. Nothing is lost, doubled or buried."""
    settings = worker_settings(server)
    chance = random.Random(1)
    async with (
        ledger_on(server, settings.queue_options()) as ledger,
        Fleet(settings, size(3, 2), tmp_path / "workers.log") as fleet,
    ):
        await ledger.submit(jobs(size(10_000, 600), tokens=200))
        for _ in range(size(200, 8)):
            await asyncio.sleep(chance.uniform(0.05, 0.4))
            fleet.signal_one(signal.SIGKILL, chance)
        await ledger.all_ended(300.0)
        statuses = await ledger.check(least_succeeded=1.0)
        assert (await ledger.results.queue_state()).dead == 0
        print(f"kills {size(200, 8)}, worker starts {fleet.starts}, {dict(statuses)}")


async def test_stopped_workers_write_nothing_late(server: RedisServer, tmp_path: Path) -> None:
    """Row 2: SIGSTOP for three leases, then CONT. The stale rows' writes are refused."""
    settings = worker_settings(server)
    chance = random.Random(2)
    rounds = size(50, 2)
    async with (
        ledger_on(server, settings.queue_options()) as ledger,
        Fleet(settings, 2, tmp_path / "workers.log") as fleet,
    ):
        await ledger.submit(jobs(size(3_000, 300), tokens=300))
        for _ in range(rounds):
            victim = chance.choice(fleet.processes)
            victim.send_signal(signal.SIGSTOP)
            await asyncio.sleep(3 * settings.lease_s)
            victim.send_signal(signal.SIGCONT)
            await asyncio.sleep(0.3)
        await ledger.all_ended(300.0)
        await ledger.check(least_succeeded=1.0)


async def test_told_to_end_under_load(server: RedisServer, tmp_path: Path) -> None:
    """Row 13: SIGTERM under load: exit 0 within the grace time, the rest released unspent."""
    settings = worker_settings(server, grace_s=1.0)
    async with ledger_on(server, settings.queue_options()) as ledger:
        await ledger.submit(jobs(size(2_000, 200), tokens=2_000))
        for round_ in range(size(50, 3)):
            async with Fleet(settings, 1, tmp_path / "workers.log") as fleet:
                process = fleet.processes[0]
                async with asyncio.timeout(20):
                    while (await ledger.results.queue_state()).running == 0:
                        await asyncio.sleep(0.02)
                process.send_signal(signal.SIGTERM)
                status = await asyncio.wait_for(process.wait(), settings.grace_s + 5.0)
                assert status == 0, f"round {round_}"
        for id in ledger.requests:
            view = await ledger.results.get(id)
            assert view.attempts == (1 if view.status is JobStatus.SUCCEEDED else view.attempts)
            assert view.attempts <= 1
        async with Fleet(settings, 2, tmp_path / "workers.log"):
            await ledger.all_ended(300.0)
        await ledger.check(least_succeeded=1.0)


async def test_poison_is_cornered(server: RedisServer, tmp_path: Path) -> None:
    """Row 10: one row in each batch of 32 kills its worker. Only those rows are buried."""
    settings = worker_settings(
        server,
        lease_s=0.5,
        heartbeat_s=0.1,
        simulated={
            "costs": {"prefill_s_per_token": 0.0, "decode_s_per_step": 0.001},
            "faults": {"kill_marker": "POISON"},
        },
    )
    batches = size(100, 2)
    poisonous = {32 * i + 7 for i in range(batches)}
    requests = [
        JobRequest(prompt=f"{'POISON' if i in poisonous else 'job'} {i}", max_tokens=8)
        for i in range(32 * batches)
    ]
    async with (
        ledger_on(server, settings.queue_options()) as ledger,
        Fleet(settings, size(4, 2), tmp_path / "workers.log") as fleet,
    ):
        await ledger.submit(requests)
        await ledger.all_ended(800.0)
        statuses = await ledger.check(least_succeeded=31 / 32)
        assert statuses == {JobStatus.SUCCEEDED: 31 * batches, JobStatus.FAILED: batches}
        assert (await ledger.results.queue_state()).dead == batches
        for id, request in ledger.requests.items():
            view = await ledger.results.get(id)
            assert view.attempts == (3 if "POISON" in str(request.prompt) else 1)
        print(f"worker starts {fleet.starts}")


async def test_clocks_ten_minutes_off(server: RedisServer, tmp_path: Path) -> None:
    """Row 12: workers whose clocks are off hold their jobs through many leases."""
    settings = worker_settings(server)
    async with (
        ledger_on(server, settings.queue_options()) as ledger,
        Fleet(settings, 3, tmp_path / "workers.log", clocks_off_s=(600.0, -600.0, 0.0)),
    ):
        # The longest rows live through two leases, and through ten in full.
        await ledger.submit(jobs(size(1_000, 150), tokens=size(4_000, 1_000)))
        await ledger.all_ended(300.0)
        await ledger.check(least_succeeded=1.0)
        assert not ledger.resets, "nothing was taken from anybody"
        workers = set()
        for id in ledger.requests:
            view = await ledger.results.get(id)
            assert view.attempts == 1
            assert view.result is not None
            assert view.result.receipt is not None
            assert abs(view.result.finished_ms - time.time() * 1000) < 300_000
            workers.add(view.result.receipt.worker)
        assert len(workers) == 3
