"""Faults of workers: killed, stopped, told to end, poisoned. The numbers are docs/reliability.md's.

`make chaos` runs the full sizes (MILLPOND_CHAOS=full), `make test` a short form of the same.
"""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeVar

import pytest

from millpond.local.server import RedisServer, ServerOptions, bundled_server, free_port
from millpond.messages import JobRequest, JobStatus
from tests.chaos.fleet import Fleet, Ledger, Process, ledger_on, worker_settings
from tests.contract.jobs import until
from tests.knobs import FULL_CHAOS

LIMIT_S = 300.0
T = TypeVar("T")


def size(full: T, short: T) -> T:
    return full if FULL_CHAOS else short


def jobs(number: int, tokens: int = 40, step: int = 1) -> list[JobRequest]:
    """Rows of 1 to ``tokens`` tokens: some end at once, some live through several steps."""
    return [
        JobRequest(
            prompt=f"job {i}",
            max_tokens=1 + step * i % tokens,
            ignore_eos=True,
            stream=i % 4 == 0,
        )
        for i in range(number)
    ]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    options = ServerOptions(tmp_path / "redis", free_port(), append_fsync="always")
    async with RedisServer(options, bundled_server()) as running:
        yield running


async def test_random_kills(server: RedisServer, tmp_path: Path) -> None:
    """Row 1: SIGKILL at random moments. Nothing is lost, doubled or buried, and what a dead worker
    held is taken from it a second after the lease at most."""
    settings = worker_settings(server)
    chance = random.Random(1)
    killed: list[tuple[str, float]] = []  # a job of each killed worker, and when
    async with (
        ledger_on(server, settings.queue_options()) as ledger,
        Fleet(settings, size(3, 2), tmp_path / "workers.log") as fleet,
        sweeping(ledger, settings.heartbeat_s),
    ):
        await ledger.submit(jobs(size(10_000, 600), tokens=200))
        for _ in range(size(200, 8)):
            await until(ledger.running, LIMIT_S)
            await asyncio.sleep(chance.uniform(0.05, 0.4))
            victim = chance.choice(fleet.processes)
            with contextlib.suppress(ProcessLookupError):
                victim.kill()
            now_s = time.monotonic()
            killed += [(id, now_s) for id in await ledger.held_by(victim.pid)]
        await ledger.all_ended(300.0)
        statuses = await ledger.check(least_succeeded=1.0)
        assert (await ledger.results.queue_state()).dead == 0
        late_s = [late for id, at_s in killed if (late := ledger.reset_after_s(id, at_s))]
        print(
            f"kills {size(200, 8)}, worker starts {fleet.starts}, {dict(statuses)}; "
            f"{len(late_s)} taken back after {max(late_s):.2f} s at most, leases {settings.lease_s} s; "
            f"jobs by the deaths that they met alone {dict(await ledger.deaths())}"
        )
        assert max(late_s) <= settings.lease_s + size(1.0, 5.0)


@contextlib.asynccontextmanager
async def sweeping(ledger: Ledger, interval_s: float) -> AsyncIterator[None]:
    """What the API does beside the workers, so that leases end also while no worker lives."""

    async def sweep() -> None:
        while True:
            await ledger.queue.reap()
            await asyncio.sleep(interval_s)

    task = asyncio.create_task(sweep())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def holding(ledger: Ledger, process: Process) -> None:
    """Until that worker holds jobs."""
    await until(lambda: ledger.held_by(process.pid), LIMIT_S)


async def test_stopped_workers_write_nothing_late(server: RedisServer, tmp_path: Path) -> None:
    """Row 2: SIGSTOP for three leases, then CONT. The stale rows' writes are refused."""
    settings = worker_settings(server, lease_s=0.5, heartbeat_s=0.1)
    chance = random.Random(2)
    log = tmp_path / "workers.log"
    stops = iter(range(size(50, 3)))
    async with (
        ledger_on(server, settings.queue_options()) as ledger,
        Fleet(settings, size(5, 2), log) as fleet,
    ):
        await ledger.submit(jobs(size(8_000, 300), tokens=300))

        async def stop_again(place: int) -> None:
            process = fleet.processes[place]
            for _ in stops:
                await holding(ledger, process)
                process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(3 * settings.lease_s)
                process.send_signal(signal.SIGCONT)
                await asyncio.sleep(chance.uniform(0.3, 1.0))

        # One is never stopped, and goes on with what is taken from the others.
        await asyncio.gather(*(stop_again(place) for place in range(len(fleet.processes) - 1)))
        await ledger.all_ended(LIMIT_S)
        await ledger.check(least_succeeded=1.0)
        assert fleet.starts == size(5, 2), "no worker was restarted"
        refused = log.read_text().count("late_write_refused")
        print(f"{size(50, 3)} stops, taken back {dict(ledger.resets)}, {refused} results refused")
        assert ledger.resets["lease_expired"] >= size(50, 3)
        assert refused > 0 or not FULL_CHAOS


async def test_told_to_end_under_load(server: RedisServer, tmp_path: Path) -> None:
    """Row 13: SIGTERM under load: exit 0 within the grace time, the rest released unspent.

    The leases are long ones: what is not released would still be out at the end.
    """
    settings = worker_settings(server, grace_s=1.0, lease_s=60.0)
    terms = iter(range(size(50, 3)))
    took_s: list[float] = []
    async with (
        ledger_on(server, settings.queue_options()) as ledger,
        Fleet(settings, size(4, 1), tmp_path / "workers.log") as fleet,
    ):
        await ledger.submit(jobs(size(1_500, 100), tokens=size(2_000, 600), step=size(7, 20)))

        async def end_again(place: int) -> None:
            for _ in terms:
                process = fleet.processes[place]
                await holding(ledger, process)
                process.send_signal(signal.SIGTERM)
                asked_s = time.monotonic()
                assert await process.wait() == 0
                took_s.append(time.monotonic() - asked_s)
                while fleet.processes[place] is process:
                    await asyncio.sleep(0.01)

        await asyncio.gather(*(end_again(place) for place in range(len(fleet.processes))))
        await ledger.all_ended(LIMIT_S)
        await ledger.check(least_succeeded=1.0)
        assert set(ledger.resets) == {"released"}, "nothing was left to the end of its lease"
        assert {(await ledger.results.get(id)).attempts for id in ledger.requests} == {1}
        print(f"{len(took_s)} ends, {max(took_s):.2f} s at most, grace {settings.grace_s} s")
        assert max(took_s) <= settings.grace_s + size(1.0, 3.0)


async def test_poison_is_cornered(server: RedisServer, tmp_path: Path) -> None:
    """Row 10: one row in each batch of 32 kills its worker. Only those rows are buried."""
    settings = worker_settings(
        server,
        lease_s=0.5,
        heartbeat_s=0.1,
        retry_delay_s=0.01,
        simulated={
            "costs": {"prefill_s_per_token": 0.0, "decode_s_per_step": 0.001},
            "faults": {"kill_marker": "POISON"},
        },
    )
    batches = size(100, 1)
    poisonous = {32 * i + 7 for i in range(batches)}
    requests = [
        JobRequest(prompt=f"{'POISON' if i in poisonous else 'job'} {i}", max_tokens=8)
        for i in range(32 * batches)
    ]
    async with (
        ledger_on(server, settings.queue_options()) as ledger,
        Fleet(settings, size(8, 2), tmp_path / "workers.log") as fleet,
    ):
        await ledger.submit(requests)
        await ledger.all_ended(800.0)
        statuses = await ledger.check(least_succeeded=31 / 32)
        assert statuses == {JobStatus.SUCCEEDED: 31 * batches, JobStatus.FAILED: batches}
        assert (await ledger.results.queue_state()).dead == batches
        for id, request in ledger.requests.items():
            view = await ledger.results.get(id)
            assert view.attempts == 1, "no attempt is spent for a death"
            assert ("POISON" in str(request.prompt)) == (view.status is JobStatus.FAILED)
        print(f"worker starts {fleet.starts}")


async def test_engines_that_hang(server: RedisServer, tmp_path: Path) -> None:
    """Row 24: some rows hang their engine for ever. Only those fail; the others run elsewhere."""
    settings = worker_settings(
        server,
        lease_s=60.0,  # it is not the end of the leases that brings the jobs back
        retry_delay_s=0.01,
        max_attempts=2,
        turn_limit_s=0.1,
        simulated={
            "costs": {"prefill_s_per_token": 0.0, "decode_s_per_step": 0.001},
            "faults": {"hang_marker": "HANG", "hang_s": 3600.0},
        },
    )
    hanging = size(10, 1)
    requests = [
        JobRequest(prompt=f"{'HANG' if i % 100 == 7 else 'job'} {i}", max_tokens=50)
        for i in range(100 * hanging)
    ]
    async with (
        ledger_on(server, settings.queue_options()) as ledger,
        Fleet(settings, size(4, 2), tmp_path / "workers.log") as fleet,
    ):
        started_s = time.monotonic()
        await ledger.submit(requests)
        await ledger.all_ended(400.0)
        statuses = await ledger.check(least_succeeded=0.99)
        assert statuses == {JobStatus.SUCCEEDED: 99 * hanging, JobStatus.FAILED: hanging}
        for id, request in ledger.requests.items():
            view = await ledger.results.get(id)
            assert ("HANG" in str(request.prompt)) == (view.status is JobStatus.FAILED)
        assert fleet.starts > size(4, 2)
        print(f"worker starts {fleet.starts}, {time.monotonic() - started_s:.0f} s")


async def test_clocks_ten_minutes_off(server: RedisServer, tmp_path: Path) -> None:
    """Row 12: workers whose clocks are off hold their jobs through many leases."""
    settings = worker_settings(server)
    async with (
        ledger_on(server, settings.queue_options()) as ledger,
        Fleet(settings, 3, tmp_path / "workers.log", clocks_off_s=(600.0, -600.0, 0.0)),
    ):
        # The longest rows live through two leases, and through eight in full.
        await ledger.submit(jobs(size(600, 150), tokens=size(4_000, 1_000), step=7))
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
