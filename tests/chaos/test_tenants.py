"""Row 18: tenants share the workers. All measures are counts, so a busy machine changes nothing."""

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bench.measure import percentile
from millpond.local.server import RedisServer, ServerOptions, bundled_server, free_port
from millpond.messages import JobRequest
from millpond.queue.keys import Keys
from millpond.queue.tenants import Tenants
from tests.chaos.fleet import QUEUE, Fleet, Ledger, ledger_on, worker_settings
from tests.chaos.test_workers import jobs, size

WINDOW = 32  # the slots of a worker: what it claims at once at most


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    options = ServerOptions(tmp_path / "redis", free_port())
    async with RedisServer(options, bundled_server()) as running:
        yield running


async def fence_of(ledger: Ledger, id: str) -> int:
    """Of the job's last claim: it tells which of two claims was the later one."""
    return int(await ledger.redis.hget(ledger.queue.keys.job(id), "fence") or 0)


async def test_a_small_tenant_beside_a_big_one(server: RedisServer, tmp_path: Path) -> None:
    """How many jobs are claimed between the small one's submit and its own claim."""
    settings = worker_settings(server, slots=WINDOW)
    submitted: dict[str, int] = {}  # the last fence before
    async with (
        ledger_on(server, settings.queue_options()) as ledger,
        Fleet(settings, 2, tmp_path / "workers.log"),
    ):
        await ledger.submit(jobs(size(10_000, 1_000)), tenant="big")
        # For as long as there is somebody to wait behind.
        while len(submitted) < size(200, 12) and await ledger.queue.depth() > 2 * WINDOW:
            before = int(await ledger.redis.hget(ledger.queue.keys.counts, "fence") or 0)
            request = JobRequest(prompt=f"small {len(submitted)}", max_tokens=20, ignore_eos=True)
            [id] = await ledger.submit([request], tenant="small")
            assert (await ledger.results.wait(id, 30.0)).status.terminal
            submitted[id] = before
        await ledger.all_ended(300.0)
        await ledger.check(least_succeeded=1.0)
        fences = sorted(await asyncio.gather(*(fence_of(ledger, id) for id in ledger.requests)))
        waits = [
            bisect_right(fences, await fence_of(ledger, id)) - bisect_right(fences, before)
            for id, before in submitted.items()
        ]
    p50, p95 = percentile(waits, 0.5), percentile(waits, 0.95)
    print(f"{len(waits)} waits in jobs: p50 {p50}, p95 {p95}, most {max(waits)}; window {WINDOW}")
    assert len(waits) >= size(40, 8), "the big tenant ran out too early to say much"
    assert p95 <= 2 * WINDOW


@pytest.mark.parametrize(
    "weights",
    [{"a": 1, "b": 1, "c": 1, "d": 1, "e": 1}, {"a": 1, "b": 2}],
    ids=["equal", "one-to-two"],
)
async def test_shares_of_tenants(
    server: RedisServer, tmp_path: Path, weights: dict[str, int]
) -> None:
    """Each has jobs of other lengths; what counts is the tokens served while all have some waiting."""
    settings = worker_settings(server, slots=WINDOW)
    async with ledger_on(server, settings.queue_options()) as ledger:
        owners: dict[str, str] = {}
        for place, (tenant, weight) in enumerate(weights.items()):
            await Tenants(ledger.redis, Keys(QUEUE)).set_weight(tenant, weight)
            requests = jobs(size(2_000, 200), tokens=10 * (place + 1))
            owners |= dict.fromkeys(await ledger.submit(requests, tenant), tenant)
        async with Fleet(settings, 2, tmp_path / "workers.log"):
            await ledger.all_ended(300.0)
        await ledger.check(least_succeeded=1.0)
        results = await ledger.results.get_results(list(owners))
        fences = dict(
            zip(owners, await asyncio.gather(*(fence_of(ledger, id) for id in owners)), strict=True)
        )
    last_claims: dict[str, int] = {}
    for id, tenant in owners.items():
        last_claims[tenant] = max(last_claims.get(tenant, 0), fences[id])
    end = min(last_claims.values())
    shares = dict.fromkeys(weights, 0.0)
    for id, tenant in owners.items():
        usage = results[id].usage
        if fences[id] <= end and usage is not None:
            tokens = usage.prompt_tokens + usage.completion_tokens
            shares[tenant] += tokens / weights[tenant]
    jain = sum(shares.values()) ** 2 / (len(shares) * sum(s * s for s in shares.values()))
    counted = sum(fence <= end for fence in fences.values())
    print(f"tokens by weight {shares}, Jain index {jain:.4f}, of {counted} claims")
    assert jain >= 0.95
    assert max(shares.values()) <= 1.1 * min(shares.values())
