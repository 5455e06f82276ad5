"""Redis with users and with TLS: everything works with the rights of deploy/users.acl and no others."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from api.background_jobs import BackgroundJobs
from millpond.access.api_keys import ApiKeys, Scope
from millpond.access.rate_limits import RateLimiter
from millpond.batches.batches import Batches
from millpond.batches.files import Files, new_file_id
from millpond.batches.records import NewBatch, new_batch_id
from millpond.batches.steps import next_step
from millpond.errors import LimitExceededError, QueueUnavailableError
from millpond.listing import JobLists
from millpond.local.server import RedisServer, free_port
from millpond.messages import (
    EventType,
    FinishReason,
    JobEvent,
    JobRequest,
    JobResult,
    JobStatus,
    Usage,
)
from millpond.messages.stored_results import unpack
from millpond.queue.claims import KeptTokens
from millpond.queue.connection import connect
from millpond.queue.directory import AnnouncedQueue, QueueDirectory
from millpond.queue.job_queue import JobQueue, QueueOptions
from millpond.queue.keys import Keys
from millpond.queue.membership import Membership, check_queue
from millpond.queue.results import Results
from millpond.queue.server_check import check_server
from millpond.queue.subscriptions import Subscriptions
from millpond.queue.tenants import Tenants
from millpond.webhooks.deliveries import Deliveries, Outcome
from millpond.webhooks.endpoints import Endpoints
from millpond.webhooks.events import WebhookEvent
from tests.conftest import debian_server, skip_or_fail
from tests.contract.jobs import a_worker
from tests.integration.certificates import make_certificate

ACL = (Path(__file__).parents[2] / "deploy" / "users.acl").read_text()
USERS = {
    line.split()[1]: line.split()[2:]
    for line in ACL.splitlines()
    if line.startswith("user millpond-")
}
PLENTY = 1_000_000
ABOUT = AnnouncedQueue(model="m", source="m", engine="simulated", adapters=("sql",))
OPTIONS = QueueOptions(max_attempts=2, max_deaths=2, retry_delay_s=0.01, lease_s=0.2)


@pytest.fixture
async def guarded(redis_server: RedisServer) -> RedisServer:
    """A server with the file's users, beside the one by whom the test looks after it."""
    async with Redis.from_url(redis_server.url) as root:
        for name, rules in USERS.items():
            await root.execute_command("ACL", "SETUSER", name, *rules)
    return redis_server


def url_of(server: RedisServer, user: str) -> str:
    return server.url.replace("redis://", f"redis://millpond-{user}:{user}-password@")


def result(id: str, status: JobStatus = JobStatus.SUCCEEDED) -> JobResult:
    reason = FinishReason.STOP if status is JobStatus.SUCCEEDED else FinishReason.ERROR
    return JobResult(
        id=id,
        status=status,
        finish_reason=reason,
        text="done",
        usage=Usage(prompt_tokens=1, completion_tokens=1),
    )


async def use_files_and_batches(api: Redis, url: str) -> None:
    """What the API does with them; the background worker's part is in test_background.py."""
    files, batches = Files(api, "default"), Batches(api, "default")
    id = new_file_id()
    await files.doom(id, in_s=60)
    await files.add(
        id,
        "acme",
        filename="a",
        object_name=id,
        num_bytes=1,
        ttl_s=3_600,
        max_tenant_bytes=9,
    )
    for newest_first in (True, False):
        await files.page("acme", after=id, limit=1, newest_first=newest_first)
    assert await files.parts(id) == [(id, 1)]
    new = NewBatch("acme", "/v1/completions", id, "1h", 3_600, None, None, None, None)
    batch = await batches.create(new_batch_id(), new)
    await batches.page("acme", after=None, limit=1)
    await batches.cancel(batch.id, "acme")
    await files.remove(id, "acme")
    jobs = BackgroundJobs(url, "default")
    await asyncio.to_thread(jobs._enqueue, next_step(batch))
    jobs.close()


async def run_everything(api_url: str, worker_url: str) -> None:
    """Every operation of the queue, each side with its own connection."""
    api, worker = connect(api_url), connect(worker_url)
    subscriptions = Subscriptions(api)
    front, back = JobQueue(api, "default", OPTIONS), JobQueue(worker, "default", OPTIONS)
    await QueueDirectory(worker).announce("default", ABOUT)
    await use_files_and_batches(api, api_url)
    assert await QueueDirectory(api).all() == {"default": ABOUT}
    results = Results(api, "default", subscriptions)
    running: list[asyncio.Task[list[EventType]]] = []
    try:
        await check_queue(api, "default", allow_eviction=False)
        assert await check_server(worker, allow_eviction=False) is not None
        joining = a_worker(model_identity="files-preset")
        assert await Membership(worker, "default").join("w", joining) == joining.model
        await Membership(api, "default").still_agrees()
        id = (await front.submit(JobRequest(prompt="a", deadline_s=60))).id
        listener = asyncio.create_task(_collect(results, id))
        running.append(listener)
        await back.wait_for_work(1)
        [job] = (await back.claim("w", 1, budget_tokens=PLENTY, capacity_tokens=PLENTY)).jobs
        await back.beat("w", a_worker())
        await back.renew([(job.id, job.fence)])
        for tenant in ("default", "other"):
            await front.submit(JobRequest(prompt="waits"), id=tenant, tenant=tenant)
            await results.get(tenant)
        delta = JobEvent(type=EventType.DELTA, id=id, attempt=1, text="d")
        await back.emit([(job.fence, delta)], [(job.fence, KeptTokens(id, 0, 0, b"1234"))])
        await back.release([(job.id, job.fence)])
        for tenant in ("default", "other"):
            await front.cancel(tenant)
        for attempt in (1, 2):
            jobs = []
            while not jobs:
                claim = await back.claim("w", 1, budget_tokens=PLENTY, capacity_tokens=PLENTY)
                jobs = claim.jobs
            await back.fail(jobs[0].fence, attempt, result(id, JobStatus.FAILED))
        assert (await results.wait(id, 5)).status is JobStatus.FAILED
        assert (await listener)[-1] is EventType.FINISHED

        good = (await front.submit(JobRequest(prompt="b"))).id
        [job] = (await back.claim("w", 1, budget_tokens=PLENTY, capacity_tokens=PLENTY)).jobs
        await back.complete([(job.fence, result(good))])
        assert (await results.get_results([good]))[good].text == "done"
        for request in (JobRequest(prompt="c"), JobRequest(prompt="d", deadline_s=0.01)):
            await front.cancel((await front.submit(request)).id)
        await front.submit(JobRequest(prompt="e"))
        for deaths in range(OPTIONS.max_deaths):
            async with asyncio.timeout(5):
                if deaths:
                    while not await worker.llen(back.keys["suspects"]):
                        await front.reap()
                    # A busy worker looks how long they have waited.
                    await back.claim("v", 1, budget_tokens=1, capacity_tokens=PLENTY)
                while not (
                    await back.claim("w", 1, budget_tokens=PLENTY, capacity_tokens=PLENTY)
                ).jobs:
                    await asyncio.sleep(0.005)
            async with asyncio.timeout(5):
                while not (await front.reap())[0]:
                    await asyncio.sleep(0.05)
        assert (await back.depth(), await back.waiting()) == (0, 0)
        await back.wake_another()
        await back.beat("w", None)
        assert (await results.queue_state()).dead == 2
        await _list_everything(api, front)
        await _use_keys(api)
        await _use_webhooks(front, back, Deliveries(api, front.keys), Endpoints(api, front.keys))
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await subscriptions.close()
        await api.aclose()
        await worker.aclose()


async def _collect(results: Results, id: str) -> list[EventType]:
    return [event.type async for event in results.subscribe(id)]


async def _list_everything(redis: Redis, queue: JobQueue) -> None:
    lists = JobLists(redis, queue.keys)
    for status in JobStatus:
        await lists.jobs(status, tenant="default")
    first = await lists.dead(limit=1)
    [letter] = first.jobs
    assert (await lists.dead(cursor=first.cursor)).jobs
    await lists.dead_letter(letter.id)
    await queue.forget_dead(letter.id)
    assert (await lists.dead(cursor=first.cursor)).jobs


async def _use_keys(redis: Redis) -> None:
    keys = ApiKeys(redis, Keys("default"))
    limiter = RateLimiter(redis, Keys("default"))
    key, _ = await keys.create("a", [Scope.READ])
    await limiter.spend(key.id, {"requests": 1}, {"requests": 1})
    with pytest.raises(LimitExceededError):
        await limiter.spend(key.id, {"requests": 1}, {"requests": 1})
    assert await keys.look_up(key.id) is not None
    await keys.revoke(key.id)
    await Tenants(redis, Keys("default")).set_weight("a", 2)
    assert [tenant.weight for tenant in await Tenants(redis, Keys("default")).list()] == [2]
    assert len(await keys.list()) == 1


async def _use_webhooks(
    front: JobQueue, back: JobQueue, deliveries: Deliveries, endpoints: Endpoints
) -> None:
    endpoint, _ = await endpoints.add("default", "https://receiver.example/")
    await front.submit(JobRequest(prompt="f", webhook_url="https://receiver.example/"), id="f")
    [job] = (await back.claim("w", 1, budget_tokens=PLENTY, capacity_tokens=PLENTY)).jobs
    await back.complete([(job.fence, result("f"))])
    data = {"id": "batch_1"}
    event = WebhookEvent.BATCH_COMPLETED
    await deliveries.announce(event, "batch_1", data, tenant="default", at_ms=1)
    assert await deliveries.pending() == 3
    for outcome, delivery in zip(Outcome, await deliveries.take(10), strict=False):
        await deliveries.settle(delivery, outcome)
    [first] = await endpoints.list()
    await deliveries.announce(event, "batch_2", data, tenant="default", at_ms=2)
    [last] = [owed for owed in await deliveries.take(10) if owed.subject == "batch_2"]
    await deliveries.settle(last, Outcome.GONE)
    await deliveries.due_in_s()
    await endpoints.secret("default")
    assert first.id == endpoint.id
    assert await endpoints.remove(endpoint.id)


async def test_the_users_of_the_acl_file_can_do_everything(guarded: RedisServer) -> None:
    await run_everything(url_of(guarded, "api"), url_of(guarded, "worker"))


async def test_a_reader_reads_results_and_hears_events(guarded: RedisServer) -> None:
    api, reader = connect(url_of(guarded, "api")), connect(url_of(guarded, "reader"))
    worker = connect(url_of(guarded, "worker"))
    queue, back, keys = JobQueue(api, "default"), JobQueue(worker, "default"), Keys("default")
    id = (await queue.submit(JobRequest(prompt="secret"))).id
    pubsub = reader.pubsub(ignore_subscribe_messages=True)
    await pubsub.subscribe(keys.events(id), keys.channel)
    [job] = (await back.claim("w", 1, budget_tokens=PLENTY, capacity_tokens=PLENTY)).jobs
    await back.complete([(job.fence, result(id))])

    heard = []
    async with asyncio.timeout(5):
        while len(heard) < 4:
            if (message := await pubsub.get_message(timeout=1)) is not None:
                heard.append(message["data"])
    assert any(b"finished" in message for message in heard)
    assert unpack(await reader.get(keys.result(id)) or b"").text == "done"
    assert len(await reader.xrange(keys.events(id))) == 2

    await pubsub.aclose()
    await api.aclose()
    await worker.aclose()
    await reader.aclose()


FORBIDDEN = {
    "api": ["FLUSHALL", "KEYS *", "CONFIG GET *", "GET other", "SET other 1", "SUBSCRIBE other"],
    "worker": [
        "FLUSHALL",
        "SMEMBERS mp:{default}:api-keys",
        "HGET mp:{default}:api-key:a digest",
        "HSET mp:{default}:api-key:a scopes admin",
        "HGET mp:{default}:endpoint:a secret",
        "HGET mp:{default}:webhook-secrets default",
        "GET mp:{other}:result:a",
        "SUBSCRIBE mp:{other}:events",
    ],
    "background": [
        "FLUSHALL",
        "SMEMBERS mp:{default}:api-keys",
        "HGETALL mp:{default}:api-key:a",
        "HSET mp:queues default x",
        "GET other",
    ],
    "reader": [
        "GET mp:{default}:body:a",
        "HGET mp:{default}:job:a tenant",
        "SET mp:{default}:result:a {}",
        "EVAL return 0",
        "PUBLISH mp:{default}:events x",
    ],
}


@pytest.mark.parametrize("user", sorted(FORBIDDEN))
async def test_each_user_can_do_no_more(guarded: RedisServer, user: str) -> None:
    redis = connect(url_of(guarded, user))
    for command in FORBIDDEN[user]:
        with pytest.raises(NoPermissionError):
            await redis.execute_command(*command.split())
    await redis.aclose()


# Sent by redis-py on its own account, some only with another database or on the way out.
OF_THE_CLIENT = {"+ping", "+client|setinfo", "+select", "+unsubscribe"}


async def test_no_command_is_granted_in_vain(guarded: RedisServer) -> None:
    async with Redis.from_url(guarded.url) as root:
        await root.script_flush()  # EVAL teaches a server that has forgotten them
        await root.config_resetstat()
        await run_everything(url_of(guarded, "api"), url_of(guarded, "worker"))
        used = {name.removeprefix("cmdstat_") for name in await root.info("commandstats")}
    for user in ("millpond-api", "millpond-worker"):
        granted = {rule for rule in USERS[user] if rule.startswith("+")} - OF_THE_CLIENT
        assert {rule.removeprefix("+") for rule in granted} <= used


@pytest.fixture
async def tls_server(tmp_path: Path) -> AsyncIterator[tuple[str, Path]]:
    """The URL of a server that speaks TLS alone, and the certificate by which to know it."""
    binary = debian_server()
    if binary is None or shutil.which("openssl") is None:
        skip_or_fail("no redis-server, or no openssl to make a certificate")
    make_certificate(tmp_path)
    port = free_port()
    flags = {
        "port": 0,
        "tls-port": port,
        "tls-cert-file": tmp_path / "cert.pem",
        "tls-key-file": tmp_path / "key.pem",
        "tls-ca-cert-file": tmp_path / "cert.pem",
        "tls-auth-clients": "no",
        "save": "",
        "dir": tmp_path,
    }
    arguments = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    process = await asyncio.create_subprocess_exec(
        str(binary), *arguments, stdout=asyncio.subprocess.DEVNULL
    )
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            except OSError:
                await asyncio.sleep(0.02)
    writer.close()
    yield f"rediss://127.0.0.1:{port}/0", tmp_path / "cert.pem"
    process.terminate()
    await process.wait()


async def test_everything_runs_over_tls(tls_server: tuple[str, Path]) -> None:
    url, certificate = tls_server
    trusting = f"{url}?ssl_ca_certs={certificate}"
    await run_everything(trusting, trusting)


async def test_a_server_that_nobody_vouches_for_is_refused(tls_server: tuple[str, Path]) -> None:
    url, _ = tls_server
    redis = connect(url)
    with pytest.raises(QueueUnavailableError, match=r"(?i)certificate"):
        await JobQueue(redis, "default").depth()
    await redis.aclose()
