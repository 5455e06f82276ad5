"""Suspects beside the others: they wait, and nobody waits for them. Row 25 of docs/reliability.md."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from millpond.local.server import RedisServer, ServerOptions, bundled_server, free_port
from millpond.messages import JobRequest, JobStatus, Priority
from tests.chaos.fleet import Fleet, Ledger, ledger_on, worker_settings
from tests.chaos.test_workers import LIMIT_S, size, sweeping
from tests.contract.jobs import until

STEP_S = 0.002
SLOTS = 32
# Rows that take so long; a worker with one of them is never empty before.
LONG_S = size(26.0, 3.0)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    options = ServerOptions(tmp_path / "redis", free_port(), append_fsync="always")
    async with RedisServer(options, bundled_server()) as running:
        yield running


def row(prompt: str, seconds: float, **fields: object) -> JobRequest:
    tokens = max(1, round(seconds / STEP_S))
    return JobRequest.model_validate(
        {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": False, **fields}
    )


async def latencies(ledger: Ledger, done: "asyncio.Task[None]") -> list[float]:
    """Seconds from the submit of small interactive jobs to their results, one after the other."""
    took_s = []
    while not done.done():
        began_s = time.monotonic()
        [id] = await ledger.submit([row("quick", STEP_S, priority=Priority.INTERACTIVE)])
        view = await ledger.results.wait(id, LIMIT_S)
        assert view.status is JobStatus.SUCCEEDED
        took_s.append(time.monotonic() - began_s)
        await asyncio.sleep(0.02)
    return took_s


async def each_holds_long_rows(ledger: Ledger, fleet: Fleet) -> None:
    """Fill every slot, two of three with rows that end at once: all workers are left with room."""
    number = len(fleet.processes) * SLOTS
    seconds = [0.2, 0.2, LONG_S]
    ids = await ledger.submit([row(f"row {i}", seconds[i % 3]) for i in range(number)])

    async def short_ones_ended() -> bool:
        return len(await ledger.results.get_results(ids)) == number * 2 // 3

    await until(short_ones_ended, LIMIT_S)


@pytest.mark.parametrize("replaced", [True, False])
async def test_a_death_stops_nobodys_admission(
    server: RedisServer, tmp_path: Path, replaced: bool
) -> None:
    """Row 25: a worker with long rows dies, and interactive jobs are done at once all the same.

    Replaced, the new worker tries the suspects. Not replaced, two busy workers are left, and one of
    them drains for the suspects once they have waited for a second.
    """
    settings = worker_settings(server, suspect_wait_s=1.0, slots=SLOTS)
    async with (
        ledger_on(server, settings.queue_options()) as ledger,
        Fleet(settings, 3, tmp_path / "workers.log") as fleet,
        sweeping(ledger, settings.heartbeat_s),
    ):
        await until(lambda: _all_ready(ledger, fleet), LIMIT_S)
        await each_holds_long_rows(ledger, fleet)
        if not replaced:
            fleet.leave_dead(0)
        victims = await ledger.held_by(fleet.processes[0].pid)
        fleet.processes[0].kill()
        await until(lambda: _taken_back(ledger, victims), LIMIT_S)
        ended = asyncio.create_task(_all_ended(ledger, victims))
        took_s = sorted(await latencies(ledger, ended))
        await ended
        await ledger.all_ended(LIMIT_S)
        await ledger.check(least_succeeded=1.0)
        for id in ledger.requests:
            assert (await ledger.results.get(id)).attempts == 1
        middle, most = took_s[len(took_s) // 2], took_s[-1]
        print(
            f"{'replaced' if replaced else 'not replaced'}: {len(victims)} suspects beside rows of "
            f"{LONG_S:g} s; {len(took_s)} interactive jobs, p50 {middle:.3f} s, most {most:.3f} s"
        )
        assert len(took_s) > 10
        assert most < LONG_S / 4


async def _all_ready(ledger: Ledger, fleet: Fleet) -> bool:
    workers = (await ledger.results.queue_state()).workers
    return sum(worker.ready for worker in workers) == len(fleet.processes)


async def _taken_back(ledger: Ledger, ids: list[str]) -> bool:
    return ledger.resets["lease_expired"] >= len(ids)


async def _all_ended(ledger: Ledger, ids: list[str]) -> None:
    async def over() -> bool:
        return len(await ledger.results.get_results(ids)) == len(ids)

    await until(over, LIMIT_S)
