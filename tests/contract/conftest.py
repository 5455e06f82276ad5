"""The queue's back-ends, and the engines: one suite runs over all of them.

``cluster`` is a server in cluster mode that owns every slot: it refuses a script whose keys lie in
more than one slot. ``repeating`` makes every script call twice.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import fakeredis
import pytest
from fakeredis.commands_mixins.scripting_mixin import ScriptingCommandsMixin
from redis.asyncio import Redis

from millpond.local.server import RedisServer, ServerOptions, bundled_server, free_port
from millpond.models.tokenization import ByteTokenizer
from millpond.queue.connection import connect
from millpond.queue.job_queue import JobQueue, QueueOptions
from millpond.queue.results import Results
from millpond.queue.subscriptions import Subscriptions
from tests.conftest import debian_server, skip_or_fail
from tests.contract.engines import CONTEXT_TOKENS, Build, builder
from tests.contract.invariants import check_invariants
from tests.contract.repeating import Repeating
from tests.upstream import Upstream
from worker.engines.base import Engine

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


@pytest.fixture(scope="module")
def tiny_llama() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=ByteTokenizer.vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT_TOKENS,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=ByteTokenizer.EOS,
        )
    ).eval()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    # Slow enough that a row can be caught while it runs.
    with Upstream(token_delay_s=0.005) as running:
        yield running


@pytest.fixture(params=["simulated", "transformers", "remote"])
def build(request: pytest.FixtureRequest) -> Iterator[Build]:
    """Builds engines and closes them all after the test."""
    built: list[Engine] = []
    make = builder(request)

    def build(slots: int = 8, kv_tokens: int | None = None) -> Engine:
        built.append(make(slots=slots, kv_tokens=kv_tokens))
        return built[-1]

    yield build
    for engine in built:
        engine.close()


@pytest.fixture
def engine(build: Build) -> Engine:
    return build()
