"""Real worker processes that can be killed, stopped and started, and a ledger that checks them."""

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import httpx
import orjson
from redis.asyncio import Redis

from millpond.errors import QueueUnavailableError
from millpond.local.child import Child
from millpond.messages import EventType, JobRequest, JobStatus, seed_from_id
from millpond.messages.stored_results import unpack
from millpond.models.presets import PRESETS
from millpond.models.prompts import prepare_prompt
from millpond.models.tokenization import ByteTokenizer
from millpond.queue.connection import connect
from millpond.queue.job_queue import JobQueue, QueueOptions
from millpond.queue.results import Results
from millpond.queue.submission import DEFAULT_TENANT, NewJob, Submission
from millpond.queue.subscriptions import GAP, Subscriptions
from millpond.settings import Settings, load_settings
from tests.chaos.zygote import Forked, Zygote
from worker.engines.base import EngineConfig, Finished, GenerationRequest, Sampling
from worker.engines.simulated import SimulatedConfig, SimulatedCosts, SimulatedEngine

QUEUE = "chaos"

# Counts, in a file that outlives the worker, what it generates and does not only take over.
COUNTING = """
import mmap
from worker.engines.scheduling.row import Row
file = open({path!r}, "r+b")
number = mmap.mmap(file.fileno(), 8)
append, replay = Row.append, Row._replay
replayed = []

def append_and_count(row, *args):
    append(row, *args)
    if not replayed:
        number[:] = (int.from_bytes(number[:], "little") + 1).to_bytes(8, "little")

def replay_uncounted(row, request):
    replayed.append(row)
    replay(row, request)
    replayed.pop()

Row.append, Row._replay = append_and_count, replay_uncounted
"""
RUN = """
import runpy
runpy.run_module("worker", run_name="__main__", alter_sys=True)
"""
# Runs the worker with a wall clock that is off by its argument.
WRONG_CLOCK = """
import runpy, sys, time
off_s, true_s, true_ns = float(sys.argv.pop()), time.time, time.time_ns
time.time = lambda: true_s() + off_s
time.time_ns = lambda: true_ns() + round(off_s * 1e9)
runpy.run_module("worker", run_name="__main__", alter_sys=True)
"""


Process = asyncio.subprocess.Process | Forked


class HasUrl(Protocol):
    """A server, or several that one ``redis_url`` leads to."""

    @property
    def url(self) -> str: ...


class Fleet:
    """``number`` workers on one server. Those that die by themselves are started again.

    ``clocks_off_s``: how far the wall clock of each is off. ``prelude`` is run in each before anything else.
    Not ``forked`` are those of a real model, whose threads no fork takes over.
    """

    def __init__(
        self,
        settings: Settings,
        number: int,
        log: Path,
        clocks_off_s: Sequence[float] = (),
        *,
        prelude: str = "",
        forked: bool = True,
    ) -> None:
        self._prelude = prelude
        self._forked = forked and not clocks_off_s
        self._settings = settings
        self._number = number
        self._log = log
        self._clocks_off_s = clocks_off_s
        self.processes: list[Process] = []
        self._watchers: list[asyncio.Task[None]] = []
        self.starts = 0
        self._open = contextlib.ExitStack()
        self._running = contextlib.AsyncExitStack()

    async def __aenter__(self) -> "Fleet":
        sink = self._open.enter_context(self._log.open("ab"))
        environment = {**os.environ, **self._settings.environment()}
        self._zygote = await self._running.enter_async_context(
            Zygote(environment, sink, self._prelude)
        )
        for place in range(self._number):
            self.processes.append(await self._start(place))
            self._watchers.append(asyncio.create_task(self._watch(place)))
        return self

    async def __aexit__(self, *_: object) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        for process in self.processes:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
                    process.kill()
            await process.wait()
        await self._running.aclose()
        self._open.close()

    async def _start(self, place: int) -> Process:
        self.starts += 1
        if self._forked:
            return await self._zygote.fork()
        arguments = ["-c", self._prelude + RUN]
        if self._clocks_off_s:
            arguments = ["-c", WRONG_CLOCK, str(self._clocks_off_s[place])]
        with self._log.open("ab") as sink:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, *arguments),
                env={**os.environ, **self._settings.environment()},
                stdout=sink,
                stderr=sink,
            )

    async def _watch(self, place: int) -> None:
        while True:
            await self.processes[place].wait()
            self.processes[place] = await self._start(place)

    def leave_dead(self, place: int) -> None:
        """Should that worker end, it is not started again."""
        self._watchers[place].cancel()

    def signal_one(self, number: signal.Signals, chance: random.Random) -> None:
        with contextlib.suppress(ProcessLookupError):
            chance.choice(self.processes).send_signal(number)


def worker_settings(server: HasUrl, **changes: Any) -> Settings:
    fields: dict[str, Any] = {
        "redis_url": server.url,
        "queue": QUEUE,
        "engine": "simulated",
        "lease_s": 1.0,
        "heartbeat_s": 0.2,
        "slots": 32,
        "window_max_wait_ms": 20,
        "log_level": "warning",
        "simulated": {"costs": {"prefill_s_per_token": 0.0, "decode_s_per_step": 0.002}},
    }
    return load_settings(**{**fields, **changes})


def expected_text(request: JobRequest, id: str) -> str:
    """What the simulated engine writes for this job, computed in this process."""
    tokenizer = ByteTokenizer()
    preset = PRESETS["simulated"]
    prompt = prepare_prompt(request, preset, tokenizer)
    free = SimulatedConfig(costs=SimulatedCosts.free(), tokens_per_step=1_000)
    engine = SimulatedEngine(EngineConfig("simulated", None, preset, slots=1), tokenizer, free)
    sampling = Sampling(
        max_tokens=prompt.max_tokens,
        temperature=request.temperature or 0.0,
        seed=seed_from_id(id) if request.seed is None else request.seed,
        ignore_eos=request.ignore_eos,
    )
    engine.admit([GenerationRequest(id, prompt.token_ids, sampling)])
    while engine.num_rows:
        for event in engine.step():
            if isinstance(event, Finished):
                return event.text
    raise AssertionError("the engine finished without a word")


class Ledger:
    """Submits jobs, hears every `finished`, and compares at the end what everybody saw."""

    def __init__(self, redis: Redis, queue: JobQueue, results: Results) -> None:
        self.redis = redis
        self.queue = queue
        self.results = results
        self.requests: dict[str, JobRequest] = {}
        self.heard: Counter[str] = Counter()
        self.resets: Counter[str] = Counter()
        self.reset_s: dict[str, list[float]] = {}
        self.first_seen: dict[str, bytes] = {}

    async def submit(self, requests: list[JobRequest], tenant: str = DEFAULT_TENANT) -> list[str]:
        """Their ids."""
        ids = []
        for start in range(0, len(requests), 500):
            chunk = requests[start : start + 500]
            answers = await self.queue.submit_many(
                [NewJob(r, tenant=tenant, tokens=100) for r in chunk]
            )
            for request, answer in zip(chunk, answers, strict=True):
                assert isinstance(answer, Submission)
                self.requests[answer.id] = request
                ids.append(answer.id)
        return ids

    async def listen(self, subscriptions: Subscriptions) -> None:
        """Run as a task: counts the final events and keeps the first result seen of each job."""
        async with subscriptions.listen(self.queue.keys.channel) as inbox:
            while True:
                message = await inbox.get()
                if message is GAP:
                    continue
                event = orjson.loads(message)
                if event["type"] in (EventType.RESET, EventType.REQUEUED):
                    self.resets[event["reason"]] += 1
                    self.reset_s.setdefault(event["id"], []).append(time.monotonic())
                if event["type"] != EventType.FINISHED:
                    continue
                self.heard[event["id"]] += 1
                with contextlib.suppress(Exception):  # the server may be away: seen later
                    stored = await self.redis.get(self.queue.keys.result(event["id"]))
                    if stored is not None:
                        self.first_seen.setdefault(event["id"], stored)

    async def all_ended(self, timeout_s: float) -> None:
        """Poll until no job is queued or running."""
        async with asyncio.timeout(timeout_s):
            while True:
                with contextlib.suppress(QueueUnavailableError):
                    state = await self.results.queue_state()
                    if state.depth == 0 and state.running == 0:
                        return
                await asyncio.sleep(0.05)

    async def running(self) -> int:
        """Jobs under a lease."""
        return int(await self.redis.zcard(self.queue.keys["leases"]))

    async def held_by(self, pid: int) -> list[str]:
        """Jobs under a lease of that worker process."""
        ids = [id.decode() for id in await self.redis.zrange(self.queue.keys["leases"], 0, -1)]
        async with self.redis.pipeline(transaction=False) as pipe:
            for id in ids:
                pipe.hget(self.queue.keys.job(id), "worker")
            workers = await pipe.execute()
        own = f"-{pid}-".encode()
        return [id for id, name in zip(ids, workers, strict=True) if name and own in name]

    def reset_after_s(self, id: str, at_s: float) -> float | None:
        """How long after that moment the job was first taken from somebody."""
        return next((s - at_s for s in self.reset_s.get(id, []) if s >= at_s), None)

    async def deaths(self) -> Counter[int]:
        """How many jobs met how many deaths of a worker that ran nothing else."""
        async with self.redis.pipeline(transaction=False) as pipe:
            for id in self.requests:
                pipe.hget(self.queue.keys.job(id), "deaths")
            return Counter(int(deaths or 0) for deaths in await pipe.execute())

    async def check(self, *, least_succeeded: float = 0.95) -> Counter[JobStatus]:
        """Every job ended once, with the right text, and no result has changed."""
        statuses: Counter[JobStatus] = Counter()
        for id, request in self.requests.items():
            stored = await self.redis.get(self.queue.keys.result(id))
            assert stored is not None, f"{id} is lost"
            result = unpack(stored)
            statuses[result.status] += 1
            assert self.first_seen.get(id, stored) == stored, f"{id} has changed"
            assert self.heard[id] <= 1, f"{id} was announced {self.heard[id]} times"
            if result.status is JobStatus.SUCCEEDED:
                assert result.text == expected_text(request, id), f"{id} is wrong"
        assert statuses[JobStatus.SUCCEEDED] >= least_succeeded * len(self.requests)
        return statuses


@contextlib.asynccontextmanager
async def ledger_on(server: HasUrl, options: QueueOptions) -> AsyncIterator[Ledger]:
    redis = connect(server.url, QUEUE)
    subscriptions = Subscriptions(redis)
    ledger = Ledger(redis, JobQueue(redis, QUEUE, options), Results(redis, QUEUE, subscriptions))
    listening = asyncio.create_task(ledger.listen(subscriptions))
    try:
        yield ledger
    finally:
        # A cancellation that meets an answer can get lost in asyncio.wait_for: say it until heard.
        while not listening.done():
            listening.cancel()
            await asyncio.wait([listening], timeout=0.1)
        await subscriptions.close()
        await redis.aclose()


@contextlib.asynccontextmanager
async def running_api(settings: Settings, log: Path) -> AsyncIterator[Child]:
    """An API process on the settings' port, started again should it die."""
    api = Child(
        *("api", [sys.executable, "-m", "api"], settings.environment()),
        stop_s=5.0,
        say=lambda _: None,
        log=log,
    )
    await api.start()
    try:
        async with asyncio.timeout(30), httpx.AsyncClient(base_url=api_url(settings)) as http:
            while not await _healthy(http):
                await asyncio.sleep(0.02)
        yield api
    finally:
        await api.stop()


def api_url(settings: Settings) -> str:
    return f"http://127.0.0.1:{settings.port}"


async def _healthy(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/healthz")).status_code == 200
    except httpx.TransportError:
        return False
