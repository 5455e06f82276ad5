"""Rows 16 and 23: a huge backlog, and many jobs through long-lived processes."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import httpx
import psutil
from redis.asyncio import Redis

from millpond.local.server import RedisServer, ServerOptions, bundled_server, free_port
from millpond.messages import FinishReason, JobRequest, JobResult, JobStatus
from millpond.queue.job_queue import JobQueue, QueueOptions
from millpond.queue.submission import NewJob, Submission
from tests.chaos.fleet import Fleet, api_url, ledger_on, running_api, worker_settings
from tests.chaos.test_workers import size
from tests.contract.jobs import until
from tests.knobs import FULL_CHAOS
from tests.side_by_side import left_alone

CHUNK = 500
WINDOW = 32
SLOW_SCRIPT_US = 10_000
MAX_CLAIM_P99_MS = 5.0
PLENTY = 10**9
IN_FLIGHT = 2_000
SERVER_SAMPLE_S = size(0.5, 0.02)


async def submit_chunk(queue: JobQueue, number: int) -> None:
    text = "a prompt of some fifty bytes, as a short question has, "
    answers = await queue.submit_many(
        [NewJob(JobRequest(prompt=f"{text}{i}", max_tokens=8)) for i in range(number)]
    )
    assert all(isinstance(answer, Submission) for answer in answers)


async def drain(queue: JobQueue, window: int, worker: str = "w") -> float | None:
    """Claim and complete one window; milliseconds of the claim. None: nothing is left."""
    start = time.perf_counter()
    claim = await queue.claim(worker, window, budget_tokens=PLENTY, capacity_tokens=PLENTY)
    elapsed_ms = (time.perf_counter() - start) * 1000
    done, stop = JobStatus.SUCCEEDED, FinishReason.STOP
    await queue.complete(
        [(job.fence, JobResult(id=job.id, status=done, finish_reason=stop)) for job in claim.jobs]
    )
    return elapsed_ms if claim.jobs else None


async def at_once(work: Callable[[int], Awaitable[None]]) -> None:
    """Two of it, so that one is packed and unpacked while the server works on the other."""
    await asyncio.gather(work(0), work(1))


async def used_bytes(redis: Redis) -> int:
    return int((await redis.info("memory"))["used_memory"])


async def test_a_huge_backlog(tmp_path: Path) -> None:
    """Row 16. Time limits are asserted in full size only: `make test` may run on a busy machine."""
    backlog = size(1_000_000, 20_000)
    options = QueueOptions(max_depth=backlog, result_ttl_s=1.0, event_ttl_s=1.0)
    async with (
        RedisServer(ServerOptions(tmp_path / "redis", free_port()), bundled_server()) as server,
        ledger_on(server, options) as ledger,
    ):
        redis, queue = ledger.redis, ledger.queue

        async def forgotten() -> bool:
            return int(await redis.dbsize()) < 10

        # Writing the file of a million jobs anew takes a core, which the claims would be short of.
        await redis.config_set("auto-aof-rewrite-percentage", "0")
        await redis.config_set("slowlog-log-slower-than", str(SLOW_SCRIPT_US))
        await submit_chunk(queue, 500)
        while await drain(queue, 100) is not None:
            pass
        await until(forgotten)
        before = await used_bytes(redis)

        async def fill(half: int) -> None:
            for _ in range(half, backlog // CHUNK, 2):
                await submit_chunk(queue, CHUNK)

        async def empty(number: int) -> None:
            while await drain(queue, 100, f"w{number}") is not None:
                pass

        await at_once(fill)
        assert await queue.depth() == backlog
        most = await used_bytes(redis)
        with left_alone():
            await redis.slowlog_reset()
            claims_ms = [await drain(queue, WINDOW) or 0.0 for _ in range(size(2_000, 100))]
            for _ in range(size(100, 5)):
                await submit_chunk(queue, CHUNK)
            slow = [e["duration"] for e in await redis.slowlog_get() if b"EVAL" in e["command"]]
        await at_once(empty)
        await until(forgotten, 180.0)
        after = await used_bytes(redis)

        claims_ms.sort()
        p99 = claims_ms[int(len(claims_ms) * 0.99)]
        print(
            f"backlog {backlog}: claim of {WINDOW} p50 {statistics.median(claims_ms):.2f} ms, "
            f"p99 {p99:.2f} ms; scripts over 10 ms {slow}; "
            f"MB before {before / 1e6:.1f}, most {most / 1e6:.1f}, drained {after / 1e6:.1f}"
        )
        assert after - before <= 0.05 * (most - before)
        if FULL_CHAOS:
            assert p99 <= MAX_CLAIM_P99_MS
            assert slow == []


class Memory:
    """Samples the resident memory of processes."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self.samples: dict[str, list[int]] = {name: [] for name in pids}

    def sample(self) -> None:
        for name, process in self._processes.items():
            self.samples[name].append(process.memory_info().rss)

    def growth(self) -> dict[str, tuple[float, float]]:
        """Of each: MB after the first tenth, MB in the last tenth."""
        tenths = {name: early_and_late(values) for name, values in self.samples.items()}
        return {name: (early / 1e6, late / 1e6) for name, (early, late) in tenths.items()}


def early_and_late(values: Sequence[float]) -> tuple[float, float]:
    """The medians of the second tenth and of the last."""
    tenth = max(1, len(values) // 10)
    return statistics.median(values[tenth : 2 * tenth]), statistics.median(values[-tenth:])


class ServerMemory:
    """What the server says that it holds, and what the system says that it has.

    It holds the results of the last seconds, more or less as jobs come and expired ones are found, and
    its allocator keeps what it held at most. So what must be flat is the bytes for each key; what it has
    must be explained by what it held at most; and when all is forgotten, nothing may be left.
    """

    def __init__(self, redis: Redis, pid: int) -> None:
        self._redis = redis
        self._process = psutil.Process(pid)
        self._sampled_s = 0.0
        self.key_bytes: list[float] = []
        self.most_rss = 0

    async def sample(self) -> None:
        if time.monotonic() - self._sampled_s < SERVER_SAMPLE_S:
            return
        self._sampled_s = time.monotonic()
        held = (await self._redis.info("memory"))["used_memory_dataset"]
        self.key_bytes.append(held / max(1, await self._redis.dbsize()))
        self.most_rss = max(self.most_rss, self._process.memory_info().rss)

    async def check(self, before: int) -> None:
        """``before``: bytes in use when nothing had been done."""

        async def forgotten() -> bool:
            return int(await self._redis.dbsize()) < 10

        await until(forgotten, 60.0)
        after = await used_bytes(self._redis)
        early, late = early_and_late(self.key_bytes)
        peak = (await self._redis.info("memory"))["used_memory_peak"]
        print(
            f"  server: {early:.0f} and {late:.0f} bytes for each key; resident {self.most_rss / 1e6:.0f} MB "
            f"at most, held {peak / 1e6:.0f} MB at most; held {before / 1e6:.1f} MB before, "
            f"{after / 1e6:.1f} MB when all was forgotten"
        )
        assert after - before <= 2_000_000
        assert self.most_rss <= 1.15 * peak + 16_000_000
        if FULL_CHAOS:
            assert late <= early * 1.1


async def test_a_long_run(tmp_path: Path) -> None:
    """Row 23: what every process holds in memory stays the same, however many jobs pass."""
    number = size(500_000, 3_000)
    options = ServerOptions(tmp_path / "redis", free_port())
    async with RedisServer(options, bundled_server()) as server:
        settings = worker_settings(
            server,
            port=free_port(),
            lease_s=15.0,
            result_ttl_s=5.0,
            event_ttl_s=5.0,
            simulated={
                "costs": {
                    "prefill_s_per_token": 0.0,
                    "decode_s_per_step": 0.0,
                    "decode_s_per_row": 0.0,
                },
                "tokens_per_step": 8,
            },
        )
        async with (
            running_api(settings, tmp_path / "api.log") as api,
            ledger_on(server, settings.queue_options()) as ledger,
            Fleet(settings, 3, tmp_path / "workers.log") as fleet,
            httpx.AsyncClient(base_url=api_url(settings), timeout=30.0) as http,
        ):
            before = await used_bytes(ledger.redis)
            await submit_chunk(ledger.queue, 100)
            await ledger.all_ended(30.0)
            assert api.pid is not None
            assert server.pid is not None
            workers = {f"worker {i}": p.pid for i, p in enumerate(fleet.processes)}
            memory = Memory({"api": api.pid, **workers})
            server_memory = ServerMemory(ledger.redis, server.pid)
            asking = asyncio.create_task(ask_for_ever(http))
            start = time.perf_counter()
            left = number
            while left:
                memory.sample()
                await server_memory.sample()
                if await ledger.queue.depth() < IN_FLIGHT:
                    await submit_chunk(ledger.queue, min(CHUNK, left))
                    left -= min(CHUNK, left)
                else:
                    await asyncio.sleep(0.05)
            await ledger.all_ended(60.0)
            memory.sample()
            seconds = time.perf_counter() - start
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await ledger.all_ended(60.0)
            state = await ledger.results.queue_state()
            assert sum(state.done.values()) == sum(state.accepted.values()) >= number
            assert state.done[JobStatus.SUCCEEDED] == sum(state.done.values())
            assert fleet.starts == 3
            growth = memory.growth()
            print(f"{number} jobs in {seconds:.0f} s; MB early and late:")
            for name, (early, late) in growth.items():
                print(f"  {name}: {early:.1f} {late:.1f}")
            await server_memory.check(before)
            if FULL_CHAOS:
                assert all(late <= early * 1.05 + 2.0 for early, late in growth.values())


async def ask_for_ever(http: httpx.AsyncClient) -> None:
    """One client of the API: submit, wait for the answer, again."""
    while True:
        answer = await http.post("/v1/jobs", json={"prompt": "hello", "max_tokens": 8})
        id = answer.json()["id"]
        assert (await http.get(f"/v1/jobs/{id}?wait=20")).status_code == 200
