"""Watches a stack's processes: reports what is ready, away or silent, and kills what hangs.

`Child` handles processes that die. This finds those that are alive but do nothing: a Redis that cannot be
reached, a worker or an API that is stopped or hangs.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Mapping
from typing import Literal

import httpx
from redis.exceptions import RedisError

from millpond.errors import QueueUnavailableError
from millpond.local.child import Child
from millpond.local.stack_events import Level, Say, StackEvent
from millpond.messages.worker_state import RegisteredWorker
from millpond.queue.connection import Connections
from millpond.queue.results import QueueState, Results
from millpond.queue.subscriptions import Subscriptions
from millpond.queue.worker_id import is_of_process
from millpond.settings import Settings
from millpond.tasks import end_tasks

LOOK_EVERY_S = 0.2
# Of one check; with AWAY_AFTER_S it bounds how long a Redis that is away goes unnoticed.
LOOK_TIMEOUT_S = 2.5
AWAY_AFTER_S = 2.0
SILENT_AFTER_S = 5.0
# The background worker tells nobody here how it is: one that has run for this long has started well.
STEADY_AFTER_S = 3.0
NOT_WAITED_FOR = ("redis", "background")


class Silence:
    """What to do about a process that has been silent for some time. Pure."""

    def __init__(self, tell_after_s: float, end_after_s: float) -> None:
        self._tell_after_s = min(tell_after_s, end_after_s)
        self._end_after_s = end_after_s
        self.told = False

    def judge(self, silent_s: float) -> Literal["tell", "end", "heard"] | None:
        """``heard``: it speaks again after it was told of. None: no news."""
        if silent_s >= self._end_after_s:
            self.told = False
            return "end"
        if silent_s >= self._tell_after_s and not self.told:
            self.told = True
            return "tell"
        if silent_s < self._tell_after_s and self.told:
            self.told = False
            return "heard"
        return None


class StackWatch:
    """``queues`` are those of the workers, by the names of their processes; ``workers`` are the stack's
    own as they last signed on.

    A worker is alive while it renews its registry entry. Only time in which Redis could be read counts: an
    outage of Redis starts the count anew. The API has to answer HTTP.
    """

    def __init__(
        self,
        settings: Settings,
        children: Mapping[str, Child],
        say: Say,
        queues: Mapping[str, str],
    ) -> None:
        self._settings = settings
        self._children = children
        self._tell = say
        self._queues = queues
        self.workers: dict[str, RegisteredWorker] = {}
        self._redis_read_since_s: float | None = None
        self._redis_away_since_s: float | None = None
        self._told_away = False
        self._api_heard_s: float | None = None  # None: not since it was started
        tell_after_s = max(SILENT_AFTER_S, 5 * settings.heartbeat_s)
        limit_s = settings.liveness_timeout_s
        self._silences = {name: Silence(tell_after_s, limit_s) for name in (*queues, "api")}
        self._stopping = False
        self._told_rows: set[str] = set()

    @property
    def ready(self) -> bool:
        """Whether the workers, and the API if there is one, are ready."""
        services = [c for name, c in self._children.items() if name not in NOT_WAITED_FOR]
        return bool(services) and all(child.ready for child in services)

    def stop_begins(self) -> None:
        """From now on restart nothing, and report what the stop waits for."""
        self._stopping = True

    async def run(self) -> None:
        """Check until cancelled."""
        connections = Connections(self._settings.redis_url)
        results = {}
        for name, queue in self._queues.items():
            redis = connections.to_queue(queue)
            results[name] = Results(redis, queue, Subscriptions(redis))
        async with httpx.AsyncClient(timeout=LOOK_TIMEOUT_S) as http:
            try:
                while True:
                    await asyncio.gather(self._look_at_redis(results), self._look_at_api(http))
                    self._look_at_background()
                    await asyncio.sleep(LOOK_EVERY_S)
            finally:
                await connections.aclose()

    async def _look_at_redis(self, results: Mapping[str, Results]) -> None:
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                states = {name: await queue.queue_state() for name, queue in results.items()}
        except (QueueUnavailableError, RedisError) as error:
            self._redis_is_away(began_s, str(error))
        except TimeoutError:
            self._redis_is_away(began_s, f"no answer in {LOOK_TIMEOUT_S:g} s")
        else:
            self._redis_answers(began_s)
            for name, state in states.items():
                self._look_at_worker(name, state)

    def _redis_is_away(self, began_s: float, reason: str) -> None:
        self._redis_read_since_s = None
        if self._redis_away_since_s is None:
            self._redis_away_since_s = began_s
        long = time.monotonic() - self._redis_away_since_s >= AWAY_AFTER_S
        if long and not self._told_away and not self._stopping:
            self._told_away = True
            self._say("redis", f"cannot be reached: {reason}; trying on", "error")

    def _redis_answers(self, now_s: float) -> None:
        self._redis_away_since_s = None
        if self._redis_read_since_s is None:
            self._redis_read_since_s = now_s
        if self._told_away:
            self._told_away = False
            self._say("redis", "can be reached again", "good")
        if "redis" in self._children:
            self._children["redis"].mark_ready()

    def _look_at_worker(self, name: str, state: QueueState) -> None:
        child = self._children.get(name)
        if child is None or (pid := child.pid) is None:
            return
        own = [w for w in state.workers if is_of_process(w.id, pid)]
        if not own:
            return
        worker = self.workers[name] = min(own, key=lambda w: w.beat_age_ms)
        if self._stopping:
            self._say_what_is_waited_for(name, worker)
            return
        assert self._redis_read_since_s is not None
        read_s = time.monotonic() - self._redis_read_since_s
        silent_s = min(worker.beat_age_ms / 1000, read_s)
        self._judge(child, silent_s)
        if worker.ready:
            child.mark_ready(_model_of(worker))

    async def _look_at_api(self, http: httpx.AsyncClient) -> None:
        """Any answer shows that it is alive; ``/readyz`` says whether it is ready."""
        child = self._children.get("api")
        if child is None or self._stopping:
            return
        if not child.ready:
            self._api_heard_s = None
        with contextlib.suppress(httpx.HTTPError):
            answer = await http.get(f"{self._settings.api_url}/readyz")
            self._api_heard_s = time.monotonic()
            if answer.status_code == httpx.codes.OK:
                child.mark_ready()
        if self._api_heard_s is not None:
            self._judge(child, time.monotonic() - self._api_heard_s)

    def _look_at_background(self) -> None:
        child = self._children.get("background")
        if child is not None and child.age_s > STEADY_AFTER_S and not self._stopping:
            child.mark_ready()

    def _judge(self, child: Child, silent_s: float) -> None:
        limit_s = self._settings.liveness_timeout_s
        match self._silences[child.name].judge(silent_s):
            case "tell":
                left_s = max(0.0, limit_s - silent_s)
                self._say(
                    child.name,
                    f"silent for {silent_s:.0f} s: it is stopped or hangs; "
                    f"killing it in {left_s:.0f} s unless it is heard of",
                    "warning",
                )
            case "heard":
                self._say(child.name, "is heard of again", "good")
            case "end":
                self._say(child.name, f"silent for {silent_s:.0f} s; killing it", "error")
                with contextlib.suppress(ProcessLookupError):
                    child.signal(signal.SIGKILL)

    def _say_what_is_waited_for(self, name: str, worker: RegisteredWorker) -> None:
        jobs = max(worker.state.rows, worker.state.in_flight)
        if name in self._told_rows or not jobs or not self._settings.grace_s:
            return
        self._told_rows.add(name)
        self._say(
            name,
            f"waiting for {jobs} row{'s' * (jobs != 1)}, at most {self._settings.grace_s:g} s; "
            "Ctrl-C again to give them back",
        )

    def _say(self, source: str, message: str, level: Level = "info") -> None:
        self._tell(StackEvent(source, message, level))


def _model_of(worker: RegisteredWorker) -> str:
    state = worker.state
    return f": {state.model}, {state.backend}, {state.slots} slots"


@contextlib.asynccontextmanager
async def watching(watch: StackWatch) -> AsyncIterator[StackWatch]:
    """Run the watch for the duration of the block."""
    task = asyncio.create_task(watch.run(), name="stack-watch")
    try:
        yield watch
    finally:
        await end_tasks(task)
