"""The queue's back-ends: one suite runs over all of them.

``cluster`` is a server in cluster mode that owns every slot: it refuses a script whose keys lie in
more than one slot. ``repeating`` makes every script call twice.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fakeredis
import pytest
from fakeredis.commands_mixins.scripting_mixin import ScriptingCommandsMixin
from redis.asyncio import Redis

from millpond.local.server import RedisServer, ServerOptions, bundled_server, free_port
from millpond.queue.connection import connect
from millpond.queue.job_queue import JobQueue, QueueOptions
from millpond.queue.results import Results
from millpond.queue.subscriptions import Subscriptions
from tests.conftest import debian_server, skip_or_fail
from tests.contract.invariants import check_invariants
from tests.contract.repeating import Repeating

BACKENDS = ("fakeredis", "repeating", "valkey", "redis7", "cluster")
# The bus between nodes listens 10,000 above.
HIGHEST_CLUSTER_PORT = 55_535
IN_PROCESS = ("fakeredis", "repeating")
# For tests of what one bounded call leaves to the next.
one_call_counts = pytest.mark.parametrize(
    "redis", [backend for backend in BACKENDS if backend != "repeating"], indirect=True
)


@pytest.fixture(scope="session")
def running_servers(tmp_path_factory: pytest.TempPathFactory):
    """Start each kind of server once for the session, on an event loop of its own."""
    loop = asyncio.new_event_loop()
    servers: dict[str, RedisServer] = {}

    def server(kind: str) -> RedisServer:
        if kind not in servers:
            binary: Path | None = debian_server() if kind == "redis7" else bundled_server()
            if binary is None:
                skip_or_fail(f"no server binary for the back-end {kind}")
            port = free_port()
            while kind == "cluster" and port > HIGHEST_CLUSTER_PORT:
                port = free_port()
            options = ServerOptions(tmp_path_factory.mktemp(kind), port, cluster=kind == "cluster")
            servers[kind] = RedisServer(options, binary)
            loop.run_until_complete(servers[kind].start())
            if kind == "cluster":
                loop.run_until_complete(_own_all_slots(servers[kind].url))
        return servers[kind]

    yield server
    for started in servers.values():
        loop.run_until_complete(started.stop())
    loop.close()


async def _own_all_slots(url: str) -> None:
    redis = Redis.from_url(url)
    await redis.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    async with asyncio.timeout(10):
        while b"cluster_state:ok" not in await redis.execute_command("CLUSTER", "INFO"):
            await asyncio.sleep(0.02)
    await redis.aclose()


class Runtime:
    """fakeredis' Lua, which takes the first line of a script, with the server's flags, for code."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def execute(self, script: bytes | str) -> Any:
        if isinstance(script, bytes):
            script = script.replace(b"#!", b"--", 1)
        return self._runtime.execute(script)


def _server_runtime(mixin: ScriptingCommandsMixin, server: fakeredis.FakeServer) -> Runtime:
    return Runtime(REAL_RUNTIME(mixin, server))


REAL_RUNTIME = ScriptingCommandsMixin._get_server_runtime


@pytest.fixture(params=BACKENDS)
async def redis(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Redis]:
    if request.param in IN_PROCESS:
        monkeypatch.setattr(ScriptingCommandsMixin, "_get_server_runtime", _server_runtime)
        client: Redis = fakeredis.FakeAsyncRedis()
        if request.param == "repeating":
            Repeating(client, monkeypatch)
    else:
        # pytest runs an async test's fixtures on the test's loop; the server starts on its own.
        running = request.getfixturevalue("running_servers")
        client = connect(await asyncio.to_thread(lambda: running(request.param).url))
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def options() -> QueueOptions:
    return QueueOptions(
        lease_s=30.0, max_attempts=3, retry_delay_s=0.02, result_ttl_s=60.0, max_depth=1_000
    )


@pytest.fixture
async def queue(redis: Redis, options: QueueOptions) -> AsyncIterator[JobQueue]:
    """An empty queue; all its keys are checked against each other after the test."""
    queue = JobQueue(redis, "test", options)
    yield queue
    await check_invariants(redis, queue.keys)


@pytest.fixture
async def results(redis: Redis) -> AsyncIterator[Results]:
    subscriptions = Subscriptions(redis)
    yield Results(redis, "test", subscriptions)
    await subscriptions.close()
