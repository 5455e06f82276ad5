"""Servers with replicas, as real processes: under sentinels, and as a cluster. Primaries can be killed."""

import asyncio
import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError

from millpond.local.server import LOOPBACK, RedisServer, ServerOptions, free_port
from tests.contract.jobs import until

PRIMARY = "pond"
SILENT_MS = 1_000  # after which a server counts as dead
LIMIT_S = 60.0
SLOTS = 16384
# The bus between nodes listens 10,000 above.
HIGHEST_CLUSTER_PORT = 55_535


class Replicated(ABC):
    """``url`` is what Millpond is given."""

    def __init__(self, servers: Sequence[RedisServer], url: str) -> None:
        self.servers = servers
        self.url = url

    @abstractmethod
    async def primary_of(self, key: str) -> RedisServer:
        """By the word of those who live. Fails while there is none."""

    async def kill_primary_of(self, key: str) -> RedisServer:
        """SIGKILL; the one that it was. Another takes its place."""
        primary = await self.primary_of(key)
        await primary.kill()
        return primary

    async def bring_back(self, killed: RedisServer, key: str, replicas: int) -> None:
        """Start it again, and wait until it follows its successor, which has so many replicas then."""
        await killed.start()
        await until(lambda: self.has_replicas(key, replicas), LIMIT_S)

    async def has_replicas(self, key: str, number: int) -> bool:
        """That are up to date."""
        with contextlib.suppress(RedisError, OSError, LookupError):
            async with asked((await self.primary_of(key)).options.port) as redis:
                info: Any = await redis.info("replication")
                states = [info[f"slave{i}"]["state"] for i in range(info["connected_slaves"])]
                return info["role"] == "master" and states.count("online") >= number
        return False

    def _on_port(self, port: int) -> RedisServer:
        return next(s for s in self.servers if s.options.port == port)


@contextlib.asynccontextmanager
async def asked(port: int) -> AsyncIterator[Redis]:
    retry = Retry(NoBackoff(), 0)
    async with Redis(host=LOOPBACK, port=port, socket_timeout=2.0, retry=retry) as redis:
        yield redis


@contextlib.asynccontextmanager
async def servers(
    folder: Path, binary: Path, number: int, *, cluster: bool = False
) -> AsyncIterator[list[RedisServer]]:
    """All empty, without a word of each other."""
    async with contextlib.AsyncExitStack() as running:
        started = []
        for i in range(number):
            options = ServerOptions(folder / f"server-{i}", _port(cluster), cluster=cluster)
            started.append(await running.enter_async_context(RedisServer(options, binary)))
            async with asked(options.port) as redis:
                await redis.config_set("repl-diskless-sync-delay", 0)
        yield started


def _port(cluster: bool) -> int:
    ports = (free_port() for _ in itertools.count())
    return next(port for port in ports if not cluster or port <= HIGHEST_CLUSTER_PORT)


class UnderSentinels(Replicated):
    def __init__(self, servers: Sequence[RedisServer], sentinels: Sequence[int]) -> None:
        hosts = ",".join(f"{LOOPBACK}:{port}" for port in sentinels)
        super().__init__(servers, f"redis+sentinel://{hosts}/{PRIMARY}/0")
        self._sentinels = sentinels

    async def primary_of(self, key: str) -> RedisServer:
        async with asked(self._sentinels[0]) as redis:
            found: Any = await redis.sentinel_get_master_addr_by_name(PRIMARY)
            return self._on_port(int(found[1]))

    async def bring_back(self, killed: RedisServer, key: str, replicas: int) -> None:
        """As an operator in a hurry does: the sentinels would tell it whom to follow ten seconds later."""
        await killed.start()
        async with asked(killed.options.port) as redis:
            await redis.replicaof(LOOPBACK, str((await self.primary_of(key)).options.port))
        await until(lambda: self.has_replicas(key, replicas), LIMIT_S)


@contextlib.asynccontextmanager
async def under_sentinels(
    folder: Path, binary: Path, replicas: int
) -> AsyncIterator[UnderSentinels]:
    """A primary, its replicas and three sentinels."""
    async with contextlib.AsyncExitStack() as running:
        started = await running.enter_async_context(servers(folder, binary, 1 + replicas))
        primary = started[0].options.port
        for server in started[1:]:
            async with asked(server.options.port) as redis:
                await redis.replicaof(LOOPBACK, str(primary))
        ports = [
            await running.enter_async_context(_sentinel(folder / f"sentinel-{i}", binary, primary))
            for i in range(3)
        ]
        group = UnderSentinels(started, ports)
        await until(lambda: group.has_replicas("", replicas), LIMIT_S)
        await until(lambda: _all_known(ports, replicas), LIMIT_S)
        yield group


@contextlib.asynccontextmanager
async def _sentinel(folder: Path, binary: Path, primary: int) -> AsyncIterator[int]:
    """Its port."""
    port = free_port()
    settings = _settings_of_sentinel(folder, port, primary)
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            binary, settings, "--sentinel", stdout=log, stderr=log
        )
    try:
        yield port
    finally:
        process.terminate()
        await process.wait()


def _settings_of_sentinel(folder: Path, port: int, primary: int) -> Path:
    """A file, which the sentinel writes to."""
    folder.mkdir()
    settings = folder / "sentinel.conf"
    settings.write_text(
        f"port {port}\nbind {LOOPBACK}\ndir {folder}\n"
        f"sentinel monitor {PRIMARY} {LOOPBACK} {primary} 2\n"
        f"sentinel down-after-milliseconds {PRIMARY} {SILENT_MS}\n"
        f"sentinel failover-timeout {PRIMARY} 3000\n"
    )
    return settings


async def _all_known(sentinels: Sequence[int], replicas: int) -> bool:
    """Whether each sentinel has heard of the others and of all replicas."""
    for port in sentinels:
        with contextlib.suppress(RedisError, OSError):
            async with asked(port) as redis:
                state = (await redis.sentinel_masters())[PRIMARY]
                if (state["num-other-sentinels"], state["num-slaves"]) == (2, replicas):
                    continue
        return False
    return True


class InCluster(Replicated):
    def __init__(self, servers: Sequence[RedisServer]) -> None:
        hosts = ",".join(f"{LOOPBACK}:{s.options.port}" for s in servers)
        super().__init__(servers, f"redis+cluster://{hosts}")

    async def primary_of(self, key: str) -> RedisServer:
        slot = key_slot(key.encode())
        for server in self.servers:
            with contextlib.suppress(RedisError, OSError):
                async with asked(server.options.port) as redis:
                    for first, last, primary, *_ in await redis.execute_command("CLUSTER", "SLOTS"):
                        if first <= slot <= last:
                            return self._on_port(int(primary[1]))
        raise LookupError(key)


@contextlib.asynccontextmanager
async def in_cluster(
    folder: Path, binary: Path, *, replicated: bool = True
) -> AsyncIterator[InCluster]:
    """Three primaries, each with a third of the slots, and with one replica if so wanted."""
    async with servers(folder, binary, 6 if replicated else 3, cluster=True) as started:
        primaries, replicas = started[:3], started[3:]
        ids = {}
        for i, server in enumerate(started):
            async with asked(server.options.port) as redis:
                ids[server] = (await redis.execute_command("CLUSTER", "MYID")).decode()
                await redis.config_set("cluster-node-timeout", SILENT_MS * 2)
                await redis.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
                if server in primaries:
                    first, last = i * SLOTS // 3, (i + 1) * SLOTS // 3 - 1
                    await redis.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
                await redis.execute_command("CLUSTER", "MEET", LOOPBACK, started[0].options.port)
        for replica, primary in zip(replicas, primaries, strict=False):
            await until(lambda p=primary, r=replica: _follows(r, ids[p]), LIMIT_S)  # type: ignore[misc]
        cluster = InCluster(started)
        await until(lambda: _all_well(started), LIMIT_S)
        yield cluster


async def _follows(replica: RedisServer, primary: str) -> bool:
    """Once it has heard of the primary."""
    async with asked(replica.options.port) as redis:
        try:
            await redis.execute_command("CLUSTER", "REPLICATE", primary)
        except RedisError:
            return False
        return True


async def _all_well(nodes: Sequence[RedisServer]) -> bool:
    for node in nodes:
        async with asked(node.options.port) as redis:
            if b"cluster_state:ok" not in await redis.execute_command("CLUSTER", "INFO"):
                return False
            ranges: Any = await redis.execute_command("CLUSTER", "SLOTS")
            if len(ranges) != 3 or sum(len(one) - 2 for one in ranges) != len(nodes):
                return False
            info: Any = await redis.info("replication")
            if info["role"] == "slave" and info["master_link_status"] != "up":
                return False
    return True
