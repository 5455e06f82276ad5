"""The Redis-protocol server: can it be reached, does it keep what it accepts, who works on the queue."""

import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from millpond.doctor.findings import Finding, error, ok, warning
from millpond.errors import QueueUnavailableError
from millpond.queue.connection import connect, without_password
from millpond.queue.membership import JoinRefusedError, Membership
from millpond.queue.results import QueueState, Results
from millpond.queue.server_check import LEAST_VERSION, ServerFacts
from millpond.queue.subscriptions import Subscriptions
from millpond.settings import Settings

PINGS = 5
SLOW_PING_S = 0.005


async def examine_server(settings: Settings) -> list[Finding]:
    redis = connect(settings.redis_url, settings.queue)
    try:
        found = await _reached(redis, settings)
        if found.level == "error":
            return [found]
        return [found, *await _facts(redis, settings), *await _queue(redis, settings)]
    finally:
        await redis.aclose()


async def _reached(redis: Redis, settings: Settings) -> Finding:
    where = without_password(settings.redis_url)
    took_s = []
    try:
        for _ in range(PINGS):
            began_s = time.perf_counter()
            await redis.ping()
            took_s.append(time.perf_counter() - began_s)
    except (RedisError, OSError) as failed:
        return error(
            "server",
            f"{where} cannot be reached: {failed}",
            "start it, correct redis_url, or let millpond up start one",
        )
    median_s = statistics.median(took_s)
    found = f"{where} answers in {median_s * 1000:.1f} ms"
    if median_s > SLOW_PING_S:
        return warning(
            "server", found, "each claim and each result waits so long: move the server nearer"
        )
    return ok("server", found)


async def _facts(redis: Redis, settings: Settings) -> list[Finding]:
    try:
        info = await redis.info("all")
    except RedisError as failed:
        return [
            warning(
                "server version",
                f"INFO is refused ({type(failed).__name__}), so nothing could be looked at",
                "allow it: ACL SETUSER ... +info, as in deploy/users.acl",
            )
        ]
    try:
        fsync = (await redis.config_get("appendfsync")).get("appendfsync")
    except RedisError:  # a managed server, or a user without the right
        fsync = None
    return [
        *judge_server(info, fsync, allow_eviction=settings.allow_eviction),
        *judge_replicas(info, settings.submit_replicas),
    ]


def judge_replicas(info: Mapping[str, Any], wanted: int) -> Iterator[Finding]:
    """Whether there are as many as each submit is to wait for."""
    connected = int(info.get("connected_slaves", 0))
    if connected < wanted:
        yield error(
            "replicas",
            f"{connected} connected, and submit_replicas is {wanted}: every submit is refused",
            "connect replicas, or lower submit_replicas",
        )
    elif wanted:
        yield ok("replicas", f"{connected} connected; a submit waits for {wanted}")


def judge_server(
    info: Mapping[str, Any], fsync: str | None, *, allow_eviction: bool
) -> Iterator[Finding]:
    """What ``INFO`` and the setting ``appendfsync`` say; None: that may not be read."""
    facts = ServerFacts.from_info(info)
    yield _version(info, facts)
    if facts.eviction == "noeviction":
        yield ok("memory policy", "noeviction: a full server refuses new jobs and keeps the others")
    else:
        judge = warning if allow_eviction else error
        yield judge(
            "memory policy",
            f"{facts.eviction}: a full server drops accepted jobs without a word",
            "CONFIG SET maxmemory-policy noeviction, and the same in its configuration file",
        )
    used_bytes, most_bytes = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if most_bytes:
        yield ok("memory", f"{_mib(used_bytes)} of {_mib(most_bytes)} used")
    else:
        yield warning(
            "memory",
            f"{_mib(used_bytes)} used, without a limit: the system ends a server that takes too much",
            "CONFIG SET maxmemory to two thirds of the machine's memory; then new jobs are refused instead",
        )
    if not facts.appends:
        yield warning(
            "persistence",
            "appendonly is off: what was accepted since the last snapshot is lost with the server",
            "CONFIG SET appendonly yes, and the same in its configuration file",
        )
    elif fsync == "no":
        yield warning(
            "persistence",
            "append-only file, appendfsync no: a crash of the machine loses what the system had not written",
            "CONFIG SET appendfsync everysec, or always to lose nothing",
        )
    else:
        loses = {
            "always": ": no accepted job is lost",
            "everysec": ": at most two seconds are lost",
        }
        yield ok(
            "persistence",
            f"append-only file, appendfsync {fsync or '?'}{loses.get(fsync or '', '')}",
        )
    for field in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"):
        if info.get(field, "ok") != "ok":
            yield error(
                "persistence",
                f"{field} is {info[field]}: the server cannot write its files",
                "look for a full disk or missing rights in the server's log",
            )


def _version(info: Mapping[str, Any], facts: ServerFacts) -> Finding:
    shown = f"Redis {info.get('redis_version', '?')}"
    if "valkey_version" in info:
        shown = f"Valkey {info['valkey_version']}"
    if facts.version < LEAST_VERSION:
        return error("server version", f"{shown} is too old", "Redis 7.0, Valkey 8, or newer")
    return ok("server version", shown)


async def _queue(redis: Redis, settings: Settings) -> list[Finding]:
    topic = f"queue {settings.queue}"
    try:
        await Membership(redis, settings.queue).still_agrees()
    except JoinRefusedError as refused:
        return [error(topic, str(refused), "see upgrades in docs/operations.md")]
    except QueueUnavailableError as away:
        return [error(topic, str(away), "see the server's log")]
    results = Results(redis, settings.queue, Subscriptions(redis))
    return [judge_queue(topic, await results.queue_state())]


def judge_queue(topic: str, state: QueueState) -> Finding:
    alive = sum(worker.alive for worker in state.workers)
    found = (
        f"{state.depth} queued, {state.running} running, {state.dead} dead letters; "
        f"workers alive: {alive}"
    )
    if state.depth and not alive:
        return warning(topic, found, "start a worker: millpond worker, or millpond up")
    if state.dead:
        return warning(topic, found, "millpond dead list says why, millpond dead retry ID runs one")
    return ok(topic, found)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 1024**2:,.0f} MiB"
