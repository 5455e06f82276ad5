"""Rows 6 and 8: the connection to the server fails in every way, at random and at each call."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from millpond.access.api_keys import ApiKeys, Scope
from millpond.access.rate_limits import TOKENS, RateLimiter
from millpond.errors import QueueUnavailableError
from millpond.local.server import RedisServer
from millpond.messages import JobRequest, JobStatus
from millpond.queue.claims import Commit, Lease
from millpond.queue.connection import connect
from millpond.queue.job_queue import JobQueue
from millpond.queue.results import Results
from millpond.queue.scripts import load_script
from millpond.queue.submission import NewJob, Submission
from millpond.queue.subscriptions import Subscriptions
from tests.chaos.fleet import QUEUE, Fleet, Ledger, ledger_on, worker_settings
from tests.chaos.proxy import Mode, Point, Proxy, Trap
from tests.chaos.test_workers import jobs, size
from tests.chaos.test_workers import server as server  # the fixture
from tests.contract.invariants import check_invariants
from tests.contract.jobs import delta, failed, success

LIMIT_S = 120.0
WORKER_CALLS = ["claim", "renew", "emit", "complete", "beat", "reap", "release", "suspect"]
CLIENT_CALLS = ["submit", "cancel", "inspect", "fail", "spend", "key_create"]


@pytest.fixture
async def proxy(server: RedisServer) -> AsyncIterator[Proxy]:
    """The scripts are loaded before: a call that is broken off is then one that runs."""
    redis = connect(server.url)
    for script in (*WORKER_CALLS, *CLIENT_CALLS):
        await redis.script_load(load_script(script).source)
    await redis.aclose()
    async with Proxy(server.options.port) as running:
        yield running


async def persist(queue: JobQueue, ledger: Ledger, id: str, request: JobRequest) -> None:
    """Submit until it is answered, as a careful client does: its own id makes it one job."""
    ledger.requests[id] = request
    while True:
        try:
            [answer] = await queue.submit_many([NewJob(request, id, tokens=100)])
        except QueueUnavailableError:
            await asyncio.sleep(0.05)
            continue
        assert isinstance(answer, Submission)
        return


async def test_a_bad_network(server: RedisServer, proxy: Proxy, tmp_path: Path) -> None:
    """Row 6: delays, resets, cuts and lost replies between everybody and the server."""
    settings = worker_settings(server, redis_url=proxy.url)
    chance = random.Random(6)
    rounds = size(50, 4)
    modes = [mode for mode in Mode if mode is not Mode.PASS]
    client = connect(proxy.url)
    queue = JobQueue(client, QUEUE, settings.queue_options())
    async with (
        ledger_on(server, settings.queue_options()) as ledger,
        Fleet(settings, 2, tmp_path / "workers.log") as fleet,
    ):

        async def submit_all() -> None:
            for number, request in enumerate(jobs(rounds * 40, tokens=100)):
                await persist(queue, ledger, f"job-{number}", request)
                await asyncio.sleep(0.01)

        submitting = asyncio.create_task(submit_all())
        for round_ in range(rounds):
            await asyncio.sleep(chance.uniform(0.1, 0.4))
            proxy.mode = modes[round_ % len(modes)]
            if proxy.mode in (Mode.RESET, Mode.CUT):
                proxy.break_all()
            await asyncio.sleep(chance.uniform(0.1, 0.8))
            # Now and then nobody says that the replies are gone, and the client has to time out.
            proxy.heal(leave_deaf=round_ % 16 == 15)
        await submitting
        await ledger.all_ended(LIMIT_S)
        statuses = await ledger.check(least_succeeded=1.0)
        assert fleet.starts == 2, "no worker was restarted"
        await check_invariants(ledger.redis, ledger.queue.keys)
        print(f"{rounds} rounds, {dict(statuses)}, taken back {dict(ledger.resets)}")
    await client.aclose()


ENGINE_BREAKS = {
    "costs": {"prefill_s_per_token": 0.0, "decode_s_per_step": 0.002},
    "faults": {"raise_at_step": 25},
}
ALL_POINTS = [(script, point, nth) for script in WORKER_CALLS for point in Point for nth in (1, 3)]
SHORT_POINTS = [("claim", Point.AFTER, 1), ("complete", Point.AFTER, 1)]


async def test_a_worker_dies_at_each_call(
    server: RedisServer, proxy: Proxy, tmp_path: Path
) -> None:
    """Row 8: SIGKILL right before the server hears of a call, and right before its answer."""
    points = size(ALL_POINTS, SHORT_POINTS)
    for number, (script, point, nth) in enumerate(points):
        changes: dict[str, Any] = {"max_attempts": 20} if script == "suspect" else {}
        if script == "suspect":
            changes["simulated"] = ENGINE_BREAKS
        settings = worker_settings(
            server, redis_url=proxy.url, lease_s=0.5, heartbeat_s=0.1, grace_s=0.0, **changes
        )
        async with (
            ledger_on(server, settings.queue_options()) as ledger,
            Fleet(settings, 1, tmp_path / "workers.log") as fleet,
        ):

            async def kill(fleet: Fleet = fleet) -> None:
                fleet.processes[0].kill()
                await asyncio.sleep(0)

            proxy.trap = trap = Trap(script, point, kill, nth)
            await feed(fleet, trap, ledger, f"p{number}", end_workers=script == "release")
            await ledger.all_ended(LIMIT_S)
            await ledger.check(least_succeeded=1.0)
            await check_invariants(ledger.redis, ledger.queue.keys)
    print(f"{len(points)} points")


async def feed(fleet: Fleet, trap: Trap, ledger: Ledger, name: str, *, end_workers: bool) -> None:
    """Give the worker jobs until the trap has sprung. SIGTERM without grace makes it release."""
    number = 0
    async with asyncio.timeout(30.0):
        while not trap.sprung.is_set():
            for request in jobs(20, tokens=200):
                await persist(ledger.queue, ledger, f"{name}-{number}", request)
                number += 1
            if end_workers and (await ledger.results.queue_state()).running:
                fleet.signal_one(signal.SIGTERM, random.Random(0))
            await asyncio.sleep(0.2)


@pytest.mark.parametrize("nth", [1, 3])
async def test_an_unheard_claim_is_made_again(
    server: RedisServer, proxy: Proxy, tmp_path: Path, nth: int
) -> None:
    """The server gives jobs to a worker, idle or busy, that is cut off before it hears of them, for
    longer than its client library tries. Nothing is taken from it, and nothing runs twice."""
    settings = worker_settings(server, redis_url=proxy.url, lease_s=4.0, window_max_jobs=8)
    healing: list[asyncio.Task[None]] = []

    async def heal_later() -> None:
        await asyncio.sleep(0.8)
        proxy.heal()

    async def cut_off() -> None:
        proxy.mode = Mode.CUT
        proxy.break_all()
        healing.append(asyncio.create_task(heal_later()))

    async with ledger_on(server, settings.queue_options()) as ledger:
        await ledger.submit(jobs(60, tokens=400))
        proxy.trap = Trap("claim", Point.AFTER, cut_off, nth)
        async with Fleet(settings, 1, tmp_path / "workers.log") as fleet:
            await ledger.all_ended(LIMIT_S)
            await ledger.check(least_succeeded=1.0)
            assert fleet.starts == 1
        [healed] = healing
        await healed
        assert not ledger.resets
        assert {(await ledger.results.get(id)).attempts for id in ledger.requests} == {1}


@pytest.mark.parametrize("point", Point)
async def test_a_client_is_cut_off_at_each_call(
    server: RedisServer, proxy: Proxy, point: Point
) -> None:
    """Row 8, in the hands of the client library, which repeats the call by itself."""
    direct, cut = connect(server.url), connect(proxy.url)
    subscriptions = Subscriptions(cut)
    theirs, ours = JobQueue(direct, QUEUE), JobQueue(cut, QUEUE)
    results = Results(cut, QUEUE, subscriptions)
    everything = {"budget_tokens": 10**6, "capacity_tokens": 10**6}

    async def nothing() -> None:
        return None

    async def take() -> Any:
        [job] = (await theirs.claim("w", 1, **everything)).jobs
        return job

    def broken(script: str) -> Trap:
        proxy.trap = Trap(script, point, nothing)
        return proxy.trap

    async def check(trap: Trap) -> None:
        assert trap.sprung.is_set()
        await check_invariants(direct, theirs.keys)

    trap = broken("submit")
    answer = await ours.submit(JobRequest(prompt="one"), id="one", tokens=5)
    assert answer == Submission("one", JobStatus.QUEUED, created=True)
    assert await theirs.depth() == 1
    await check(trap)

    trap = broken("inspect")
    assert (await results.get("one")).status is JobStatus.QUEUED
    await check(trap)

    job = await take()
    trap = broken("renew")
    assert await ours.renew([("one", job.fence)]) == [Lease.HELD]
    await check(trap)

    trap = broken("emit")
    [commit] = await ours.emit([delta(job, "text")])
    assert commit is (Commit.STORED if point is Point.BEFORE else Commit.KNOWN)
    entries = await direct.xrange(theirs.keys.events("one"))
    assert sum(b'"delta"' in fields[b"event"] for _, fields in entries) == 1
    await check(trap)

    trap = broken("release")
    assert await ours.release([("one", job.fence)]) == (point is Point.BEFORE)
    await check(trap)

    job = await take()
    trap = broken("fail")
    commit = await ours.fail(job.fence, job.attempt, failed("one"))
    assert commit is (Commit.RETRY if point is Point.BEFORE else Commit.LOST)
    assert (await results.get("one")).retry_in_ms is not None
    await check(trap)

    trap = broken("cancel")
    assert await ours.cancel("one") is JobStatus.CANCELLED
    await check(trap)

    await theirs.submit(JobRequest(prompt="two"), id="two", tokens=5)
    trap = broken("claim")
    [two] = (await ours.claim("v", 1, **everything)).jobs
    assert (two.id, two.attempt) == ("two", 1)
    await check(trap)

    await theirs.submit(JobRequest(prompt="three"), id="three", tokens=5)
    job = await take()
    trap = broken("complete")
    [commit] = await ours.complete([(job.fence, success("three"))])
    assert commit is (Commit.STORED if point is Point.BEFORE else Commit.KNOWN)
    await check(trap)

    await theirs.submit(JobRequest(prompt="four"), id="four", tokens=5)
    job = await take()
    trap = broken("suspect")
    assert await ours.suspect([(job.fence, failed("four"))]) == (point is Point.BEFORE)
    await check(trap)

    trap = broken("reap")
    await ours.reap()
    await check(trap)

    trap = broken("spend")
    [budget] = await RateLimiter(cut, ours.keys).spend("key", {TOKENS: 100}, {TOKENS: 60})
    assert 40 <= budget.left < 45
    assert trap.sprung.is_set()

    trap = broken("key_create")
    key, _ = await ApiKeys(cut, ours.keys).create("default", {Scope.READ})
    assert await ApiKeys(direct, ours.keys).list() == [key]
    assert trap.sprung.is_set()
    await cut.aclose()
    await direct.aclose()
