"""One connection for all listeners: nobody misses anything without being told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from millpond.local.server import RedisServer
from millpond.messages import JobStatus
from millpond.queue import subscriptions as module
from millpond.queue.connection import connect
from millpond.queue.job_queue import JobQueue
from millpond.queue.results import Results
from millpond.queue.subscriptions import GAP, MAX_BACKLOG, Expectation, Subscriptions
from tests.chaos.proxy import Mode, Proxy
from tests.contract.jobs import put, success, take_one, until


@pytest.fixture
async def hub(redis: Redis) -> AsyncIterator[Subscriptions]:
    hub = Subscriptions(redis)
    yield hub
    await hub.close()


async def next_message(inbox: "asyncio.Queue[bytes]") -> bytes:
    """The next item that is not GAP."""
    async with asyncio.timeout(5):
        while (message := await inbox.get()) == GAP:
            pass
        return message


async def listening(redis: Redis, channel: str) -> None:
    async def heard() -> bool:
        [(_, number)] = await redis.pubsub_numsub(channel)
        return bool(number == 1)

    await until(heard)


async def test_the_first_item_is_a_gap(hub: Subscriptions) -> None:
    for _ in range(2):
        async with hub.listen("c") as inbox:
            assert await inbox.get() == GAP


async def test_each_listener_gets_its_own_channel(hub: Subscriptions, redis: Redis) -> None:
    async with hub.listen("c1") as one, hub.listen("c1") as two, hub.listen("c2") as other:
        await listening(redis, "c1")
        await listening(redis, "c2")
        await redis.publish("c1", "m1")
        await redis.publish("c2", "m2")
        assert await next_message(one) == b"m1"
        assert await next_message(two) == b"m1"
        assert await next_message(other) == b"m2"


async def test_those_who_come_while_the_connection_is_made_are_heard(
    hub: Subscriptions, redis: Redis
) -> None:
    """The reader's first subscribe names the listeners of that moment only."""

    async def hear(channel: str) -> bytes:
        async with hub.listen(channel) as inbox:
            return await next_message(inbox)

    tasks = []
    for i in range(20):
        tasks.append(asyncio.create_task(hear(f"c{i}")))
        await asyncio.sleep(0)
    for i in range(20):
        await listening(redis, f"c{i}")
        await redis.publish(f"c{i}", f"m{i}")
    assert await asyncio.gather(*tasks) == [f"m{i}".encode() for i in range(20)]


async def test_leaving_ends_the_subscription_of_the_last(hub: Subscriptions, redis: Redis) -> None:
    async with contextlib.AsyncExitStack() as stack:
        inbox = await stack.enter_async_context(hub.listen("c"))
        async with hub.listen("c"):
            await listening(redis, "c")
        await redis.publish("c", "still here")
        assert await next_message(inbox) == b"still here"

    async def left() -> bool:
        [(_, number)] = await redis.pubsub_numsub("c")
        return bool(number == 0)

    await until(left)


async def test_coming_and_going_in_a_hurry(hub: Subscriptions, redis: Redis) -> None:
    async def visit(rounds: int) -> None:
        for _ in range(rounds):
            async with hub.listen("c") as inbox:
                await inbox.get()

    await asyncio.gather(*(visit(20) for _ in range(10)))
    async with hub.listen("c") as inbox:
        await listening(redis, "c")
        await redis.publish("c", "m")
        assert await next_message(inbox) == b"m"


async def test_a_cancelled_listener_leaves_nothing_behind(hub: Subscriptions, redis: Redis) -> None:
    async def hear() -> None:
        async with hub.listen("c") as inbox:
            while True:
                await inbox.get()

    task = asyncio.create_task(hear())
    await listening(redis, "c")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with hub.listen("c") as inbox:
        await listening(redis, "c")
        await redis.publish("c", "m")
        assert await next_message(inbox) == b"m"


async def test_a_slow_listener_is_bounded_and_told(hub: Subscriptions, redis: Redis) -> None:
    async with hub.listen("c") as slow, hub.listen("c") as quick, hub.listen("end") as end:
        await listening(redis, "c")
        await listening(redis, "end")
        got = 0
        for start in range(0, MAX_BACKLOG + 500, 100):
            async with redis.pipeline(transaction=False) as pipe:
                for i in range(100):
                    pipe.publish("c", str(start + i))
                await pipe.execute()
            for _ in range(100):
                assert int(await next_message(quick)) == got
                got += 1
        await redis.publish("end", "m")
        await next_message(end)
        assert slow.qsize() <= MAX_BACKLOG + 1
        items = [slow.get_nowait() for _ in range(slow.qsize())]
        assert items[-1] == GAP  # whoever reads to here looks at the stored truth again


async def test_survives_a_server_restart(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECONNECT_DELAY_S", 0.02)
    redis = connect(redis_server.url)
    hub = Subscriptions(redis)
    queue, results = JobQueue(redis, "test"), Results(redis, "test", hub)
    await put(queue, "a")
    waiter = asyncio.create_task(results.wait("a", 60.0))
    async with hub.listen("c") as inbox:
        await listening(redis, queue.keys.events("a"))
        await listening(redis, "c")
        while not inbox.empty():
            inbox.get_nowait()
        job = await take_one(queue)
        await redis_server.stop()
        await redis_server.start()
        async with asyncio.timeout(10):
            assert await inbox.get() == GAP
        await listening(redis, "c")
        await redis.publish("c", "m")
        assert await next_message(inbox) == b"m"
        await queue.complete([(job.fence, success("a"))])
        async with asyncio.timeout(5):
            assert (await waiter).status is JobStatus.SUCCEEDED
    await hub.close()
    await redis.aclose()


async def test_an_end_missed_while_away_is_found(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listener's connection breaks, the job ends meanwhile: the GAP makes the waiter look."""
    redis, other = connect(redis_server.url), connect(redis_server.url)
    hub = Subscriptions(redis)
    queue, results = JobQueue(other, "test"), Results(redis, "test", hub)
    await put(queue, "a")
    waiter = asyncio.create_task(results.wait("a", 60.0))
    await listening(other, queue.keys.events("a"))
    job = await take_one(queue)
    async with other.pipeline(transaction=True) as pipe:
        pipe.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        pipe.echo("x")
        await pipe.execute()
    await queue.complete([(job.fence, success("a"))])
    async with asyncio.timeout(5):
        assert (await waiter).status is JobStatus.SUCCEEDED
    await hub.close()
    await redis.aclose()
    await other.aclose()


async def test_a_reader_that_fails_in_any_way_listens_again(
    hub: Subscriptions, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any other error than those of a connection ended it in silence: waits became polls."""
    monkeypatch.setattr(module, "RECONNECT_DELAY_S", 0.02)
    failures = iter([ZeroDivisionError("unforeseen"), RuntimeError("unforeseen")])
    get_message = PubSub.get_message

    async def failing(pubsub: PubSub, **rest: Any) -> Any:
        if (error := next(failures, None)) is not None:
            raise error
        return await get_message(pubsub, **rest)

    monkeypatch.setattr(PubSub, "get_message", failing)
    async with hub.listen("c") as inbox:
        await listening(redis, "c")
        await until_heard(redis, inbox)
    assert next(failures, None) is None


async def until_heard(redis: Redis, inbox: "asyncio.Queue[bytes]") -> None:
    """Publish until it arrives."""

    async def heard() -> bool:
        await redis.publish("c", "m")
        return any(inbox.get_nowait() == b"m" for _ in range(inbox.qsize()))

    await until(heard)


async def test_a_silent_connection_is_replaced(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that keeps the connection open and passes nothing on: only the waiters' polls noticed."""
    monkeypatch.setattr(module, "SILENCE_S", 0.1)
    monkeypatch.setattr(module, "RECONNECT_DELAY_S", 0.02)
    direct = connect(redis_server.url)
    async with Proxy(redis_server.options.port) as proxy:
        redis = connect(proxy.url)
        hub = Subscriptions(redis)
        async with hub.listen("c") as inbox:
            await listening(direct, "c")
            await until_heard(direct, inbox)
            proxy.mode = Mode.SWALLOW
            await direct.publish("c", "lost")
            await asyncio.sleep(0.05)
            proxy.heal(leave_deaf=True)
            await until_heard(direct, inbox)
        await hub.close()
        await redis.aclose()
    await direct.aclose()


@pytest.mark.alone
async def test_a_quiet_connection_is_kept(
    hub: Subscriptions, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 0.05)
    async with hub.listen("c") as inbox:
        await listening(redis, "c")
        first = hub._pubsub
        for _ in range(10):
            await asyncio.sleep(0.05)
        assert hub._pubsub is first
        await until_heard(redis, inbox)


async def test_what_no_message_told_of_is_found_by_one_look_for_all(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody polls: idle listeners cost two commands for hundreds of them."""
    monkeypatch.setattr(module, "CHECK_EVERY_S", 0.05)
    async with contextlib.AsyncExitStack() as stack:
        redis = await stack.enter_async_context(connect(redis_server.url))
        hub = Subscriptions(redis)
        stack.push_async_callback(hub.close)
        names = [f"{{q}}job{i}" for i in range(600)]
        await redis.mset({f"alive:{name}": 1 for name in names})
        inboxes = {
            name: await stack.enter_async_context(
                hub.listen(name, Expectation(alive=f"alive:{name}", over=f"over:{name}"))
            )
            for name in names
        }
        await listening(redis, names[-1])
        await settled(inboxes)
        before = await calls(redis, "exists")

        await asyncio.sleep(0.5)

        looks = await calls(redis, "exists") - before
        assert 4 <= looks <= 4 * 0.5 / 0.05
        assert all(inbox.empty() for inbox in inboxes.values())
        await redis.delete("alive:{q}job5")
        await redis.set("over:{q}job570", 1)
        for name in ("{q}job5", "{q}job570"):
            async with asyncio.timeout(5):
                assert await inboxes[name].get() == GAP
        assert inboxes["{q}job6"].empty()


async def settled(inboxes: dict[str, "asyncio.Queue[bytes]"]) -> None:
    """Take what belongs to the beginning: a GAP at once, and one by the confirmed subscription."""
    for inbox in inboxes.values():
        async with asyncio.timeout(5):
            await inbox.get()
    quiet_since = asyncio.get_running_loop().time()
    async with asyncio.timeout(10):
        while asyncio.get_running_loop().time() - quiet_since < 0.3:
            for inbox in inboxes.values():
                while not inbox.empty():
                    inbox.get_nowait()
                    quiet_since = asyncio.get_running_loop().time()
            await asyncio.sleep(0.02)


async def calls(redis: Redis, command: str) -> int:
    stats = await redis.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))
