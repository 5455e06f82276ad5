"""One queue, one slot: every key of every script, by computation and by what a server saw."""

import asyncio
import re
import shlex
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from millpond.local.server import RedisServer
from millpond.queue.connection import connect
from millpond.queue.job_queue import JobQueue
from millpond.queue.keys import QUEUE_KEYS, Keys
from millpond.queue.results import Results
from millpond.queue.scripts import Scripts, load_script
from millpond.queue.subscriptions import Subscriptions
from tests.contract.jobs import (
    a_worker,
    delta,
    failed,
    lease_over,
    put,
    success,
    take,
    with_options,
)
from tests.unit.test_scripts import SCRIPTS

ID = "an-id.with:all_kinds"


def slot(key: str) -> int:
    return key_slot(key.encode())


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("queue_name", ["default", "a", "Q_2.x-y"])
async def test_every_key_of_a_script_is_in_the_queues_slot(
    redis: Redis, name: str, queue_name: str
) -> None:
    keys = Keys(queue_name)
    own = slot(f"{{{queue_name}}}")
    given = Scripts(redis, keys).key_list(load_script(name))
    assert given
    for key in given:
        assert slot(key) == own
        assert slot(key + ID) == own  # where the script appends an id


def test_all_keys_are_in_one_slot() -> None:
    keys = Keys("test")
    names = [keys[name] for name in QUEUE_KEYS]
    names += [keys.job(ID), keys.body(ID), keys.kept(ID), keys.result(ID), keys.events(ID)]
    assert {slot(name) for name in names} == {slot("{test}")}
    assert len(set(names)) == len(names)


MONITOR_LINE = re.compile(r'\+?[\d.]+ \[\d+ (?P<client>[^\]]+)\] (?P<words>".*)')


async def monitored(server: RedisServer) -> AsyncIterator[list[str]]:
    """Every command that the server runs from now on, those inside scripts only."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.options.port)
    writer.write(b"MONITOR\r\n")
    assert await reader.readline() == b"+OK\r\n"
    yield []
    while True:
        found = MONITOR_LINE.match((await reader.readline()).decode().strip())
        if found is not None and found["client"] == "lua":
            yield shlex.split(found["words"])
        elif found is not None and '"the end"' in found["words"]:
            break
    writer.close()
    await writer.wait_closed()


async def full_scenario(redis: Redis) -> None:
    """Every operation, and everything that time brings about."""
    queue = JobQueue(redis, "test")
    brief = with_options(
        queue, redis, lease_s=0.02, retry_delay_s=0.0, max_attempts=2, max_deaths=1
    )
    await put(brief, "lost", "done", "failed", "released", "flagged")
    await put(brief, "cancelled", priority="batch", metadata={"k": "v"})
    await put(brief, "expired", priority="interactive", deadline_s=0.01)
    await brief.cancel("cancelled")
    await brief.beat("w", a_worker())
    for _ in range(3):
        held = {job.id: job for job in await take(brief)}
        await brief.renew([(job.id, job.fence) for job in held.values()])
        await brief.emit([delta(job, "text") for job in held.values()])
        await brief.cancel("flagged")
        if "done" in held:
            await brief.complete([(held["done"].fence, success("done"))])
        if "failed" in held:
            await brief.fail(held["failed"].fence, 1, failed("failed"))
        if "released" in held:
            await brief.release([("released", held["released"].fence)])
        await lease_over(redis, brief)
        await brief.reap()
    await brief.beat("w", None)
    subscriptions = Subscriptions(redis)
    results = Results(redis, "test", subscriptions)
    for id in ("lost", "done", "failed", "expired"):
        assert (await results.get(id)).result is not None
        assert [event async for event in results.subscribe(id)]
    await results.queue_state()
    await subscriptions.close()


async def keys_of(redis: Redis, command: list[str]) -> list[str]:
    """The keys that the server sees in a command, and channels, which scripts name in the same way."""
    match command[0].upper():
        case "TIME":
            return []
        case "PUBLISH":
            return [command[1]]
    found = await redis.command_getkeys(*command)
    return [key.decode() if isinstance(key, bytes) else key for key in found]


async def test_scripts_touch_no_other_slot(redis_server: RedisServer) -> None:
    """A script may build key names that it was not given: look at what a server really ran."""
    async with connect(redis_server.url) as redis:
        await _check_touched(redis, redis_server)


async def _check_touched(redis: Redis, redis_server: RedisServer) -> None:
    monitor = monitored(redis_server)
    await anext(monitor)
    await full_scenario(redis)
    await redis.echo("the end")
    commands = [command async for command in monitor]
    assert {c[0].upper() for c in commands} >= {
        "HSET",
        "XADD",
        "PUBLISH",
        "ZADD",
        "UNLINK",
    }
    touched: set[str] = set()
    for command in {tuple(command[:2]): command for command in commands}.values():
        touched.update(await keys_of(redis, command))
    assert len(touched) > 30
    assert {slot(key) for key in touched} == {slot("{test}")}
