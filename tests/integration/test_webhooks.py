"""Webhooks from the job's end to a real receiver, and all that may not be reached by them."""

import asyncio
import contextlib
import shutil
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from standardwebhooks import WebhookVerificationError

from background.webhooks.delivering import Deliverer
from background.webhooks.sender import Sender, Try
from millpond.webhooks.addresses import read_networks
from millpond.webhooks.deliveries import Deliveries, Outcome
from millpond.webhooks.endpoints import Endpoints, new_secret
from millpond.webhooks.events import WebhookEvent
from millpond.webhooks.guard import Guard, Resolver, SystemResolver
from tests.conftest import skip_or_fail
from tests.integration.certificates import make_certificate
from tests.integration.conftest import RunningApi, StartApi
from tests.webhook_receiver import ENDLESS, NO_ANSWER, answer, receiving, resolving

LOOPBACK = read_networks(["127.0.0.1"])
METADATA_SERVICE = "169.254.169.254"


@pytest.fixture
async def api(redis_server: Any, start_api: StartApi) -> AsyncIterator[RunningApi]:
    """One that lets webhooks go to 127.0.0.1, and to nothing else that is not public."""
    async with start_api(redis_server.url, webhook_allow="127.0.0.1") as running:
        yield running


@contextlib.asynccontextmanager
async def sending(
    resolve: Resolver | None = None, *, timeout_s: float = 5.0, **changes: Any
) -> AsyncIterator[Sender]:
    system = SystemResolver()
    guard = Guard(resolve or system, changes.pop("allowed", LOOPBACK))
    try:
        async with Sender(guard, timeout_s, **changes) as sender:
            yield sender
    finally:
        system.close()


async def send(sender: Sender, url: str) -> Try:
    return await sender.send(url, new_secret(), "evt_a", b"{}")


@contextlib.asynccontextmanager
async def delivering(api: RunningApi, **changes: Any) -> AsyncIterator[Deliverer]:
    async with sending(**changes) as sender:
        yield Deliverer(api.services.redis, "default", sender)


async def deliver(deliverer: Deliverer) -> int:
    """Make the tries that are due; how many."""
    number = await deliverer.begin_due()
    await deliverer.finish()
    return number


async def all_due(api: RunningApi) -> None:
    """As if the time of every retry had come."""
    key = api.queue.keys["deliveries"]
    for name in await api.services.redis.zrange(key, 0, -1):
        await api.services.redis.zadd(key, {name: 1})


async def run(api: RunningApi, **fields: Any) -> str:
    """A job from its submit to its end."""
    id = await api.submit(**fields)
    await api.complete(await api.claim(), text="Paris.")
    return id


async def test_a_job_tells_its_webhook_what_came_out(api: RunningApi) -> None:
    secret = await Endpoints(api.services.redis, api.queue.keys).secret("default")
    async with receiving() as receiver, delivering(api) as deliverer:
        id = await run(api, webhook_url=receiver.url(), metadata={"user": "42"})

        assert await deliver(deliverer) == 1
        assert await deliver(deliverer) == 0

    [got] = receiver.received
    event = got.verified(secret)
    assert (event["type"], event["data"]["id"]) == ("job.succeeded", id)
    shown = (await api.http.get(f"/v1/jobs/{id}")).json()["result"]
    assert event["data"]["result"] == shown
    assert got.headers["host"] == f"127.0.0.1:{receiver.port}"
    with pytest.raises(WebhookVerificationError):
        got.verified(new_secret())


async def test_openais_client_reads_the_event_of_a_batch(api: RunningApi) -> None:
    deliveries = Deliveries(api.services.redis, api.queue.keys)
    endpoint, secret = await Endpoints(api.services.redis, api.queue.keys).add(
        "default", "http://localhost/", [WebhookEvent.BATCH_COMPLETED]
    )
    async with receiving() as receiver, delivering(api) as deliverer:
        key = api.queue.keys["endpoint"] + endpoint.id
        await api.services.redis.hset(key, "url", receiver.url())
        await deliveries.announce(
            WebhookEvent.BATCH_COMPLETED, "batch_1", {"id": "batch_1"}, tenant="default", at_ms=1
        )
        await deliver(deliverer)

    [got] = receiver.received
    with OpenAI(base_url="http://localhost/v1", api_key="none", webhook_secret=secret) as client:
        event = client.webhooks.unwrap(got.body.decode(), got.headers)
    assert event.type == "batch.completed"
    assert event.data.id == "batch_1"


async def test_it_is_tried_again_under_the_same_id_until_it_is_taken(api: RunningApi) -> None:
    """A redirect is a failure like any other, and nobody goes where it leads."""
    async with receiving() as elsewhere, contextlib.AsyncExitStack() as stack:
        redirect = answer(307, f"Location: {elsewhere.url()}")
        metadata = answer(302, f"Location: http://{METADATA_SERVICE}/latest/meta-data")
        answers = [answer(500), redirect, metadata, answer(404), answer(200)]
        receiver = await stack.enter_async_context(receiving(*answers))
        deliverer = await stack.enter_async_context(delivering(api))
        await run(api, webhook_url=receiver.url())
        for _ in answers:
            assert await deliver(deliverer) == 1
            assert await deliver(deliverer) == 0, "it waits for its time"
            await all_due(api)
        assert await deliver(deliverer) == 0

    assert len(receiver.received) == len(answers)
    assert len({got.headers["webhook-id"] for got in receiver.received}) == 1
    assert elsewhere.connections == 0


async def test_after_the_last_try_it_is_given_up(api: RunningApi) -> None:
    async with receiving(answer(503)) as receiver, delivering(api) as deliverer:
        await run(api, webhook_url=receiver.url())
        while await deliver(deliverer):
            await all_due(api)

    assert len(receiver.received) == 8
    assert await api.services.redis.hget(api.queue.keys.counts, "undelivered") == b"1"
    assert await Deliveries(api.services.redis, api.queue.keys).pending() == 0


async def test_410_disables_the_endpoint(api: RunningApi) -> None:
    endpoints = Endpoints(api.services.redis, api.queue.keys)
    async with receiving(answer(410)) as receiver, delivering(api) as deliverer:
        await endpoints.add("default", receiver.url())
        await run(api)
        assert await deliver(deliverer) == 1
        await run(api)
        assert await deliver(deliverer) == 0

    [endpoint] = await endpoints.list()
    assert endpoint.disabled_ms is not None
    assert len(receiver.received) == 1


async def test_dead_and_endless_receivers_hold_up_nobody(api: RunningApi) -> None:
    async with contextlib.AsyncExitStack() as stack:
        silent = await stack.enter_async_context(receiving(NO_ANSWER))
        endless = await stack.enter_async_context(receiving(ENDLESS))
        good = await stack.enter_async_context(receiving())
        deliverer = await stack.enter_async_context(delivering(api, timeout_s=2.0))
        for _ in range(20):
            await run(api, webhook_url=silent.url())
        await run(api, webhook_url=endless.url())
        await run(api, webhook_url=good.url())
        await run(api, webhook_url="http://127.0.0.1:1/")

        await deliver(deliverer)

        assert len(silent.received) == 8, "as many as one receiver gets at once"
        assert len(endless.received) == len(good.received) == 1
    deliveries = Deliveries(api.services.redis, api.queue.keys)
    assert await deliveries.pending() == 21, "an endless answer is an answer"


async def test_a_sender_that_dies_leaves_it_to_the_next(api: RunningApi) -> None:
    async with receiving(NO_ANSWER, answer(200)) as receiver:
        await run(api, webhook_url=receiver.url())
        async with delivering(api, timeout_s=30.0) as first:
            await first.begin_due()
            async with asyncio.timeout(5):
                while not receiver.received:
                    await asyncio.sleep(0.005)
            await first.finish(timeout_s=0)  # cut off: no note of how it went
        await all_due(api)  # its lease ends
        async with delivering(api) as second:
            assert await deliver(second) == 1

    one, other = receiver.received
    assert one.headers["webhook-id"] == other.headers["webhook-id"]
    assert await Deliveries(api.services.redis, api.queue.keys).pending() == 0


FORBIDDEN = [
    f"http://{METADATA_SERVICE}/latest/meta-data",
    f"http://[::ffff:{METADATA_SERVICE}]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://2852039166/",
    "http://0xa9fea9fe/",
    "http://[::1]/",
    "http://10.0.0.1/",
    "http://127.0.0.2/",
]


@pytest.mark.parametrize("url", FORBIDDEN)
async def test_a_job_with_a_forbidden_webhook_is_refused(api: RunningApi, url: str) -> None:
    one = await api.http.post("/v1/jobs", json={"prompt": "a", "webhook_url": url})
    jobs = [{"prompt": "a", "webhook_url": url}, {"prompt": "b"}]
    bulk = (await api.http.post("/v1/jobs/bulk", json={"jobs": jobs})).json()

    assert one.status_code == 422
    for problem in (one.json(), bulk["jobs"][0]["problem"]):
        assert problem["code"] == "webhook_forbidden"
        [fault] = problem["errors"]
        assert fault["field"] == "webhook_url"
        assert "webhook_allow" in fault["message"]
        assert METADATA_SERVICE not in str(problem["errors"])
    assert bulk["accepted"] == 1
    assert await api.queue.depth() == 1


async def test_a_batch_with_a_forbidden_webhook_is_refused(api: RunningApi) -> None:
    batch = {
        "input_file_id": "file-a",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "webhook_url": FORBIDDEN[0],
    }
    refused = await api.http.post("/v1/batches", json=batch)

    error = refused.json()["error"]
    assert refused.status_code == 400
    assert (error["param"], error["code"]) == ("webhook_url", "webhook_forbidden")


async def test_a_name_is_resolved_before_the_job_is_accepted(
    start_api: StartApi, redis_server: Any
) -> None:
    async with start_api(redis_server.url) as api:
        body = {"prompt": "a", "webhook_url": "http://localhost/"}
        refused = await api.http.post("/v1/jobs", json=body)
        body["webhook_url"] = "http://nobody.invalid/"
        unknown = await api.http.post("/v1/jobs", json=body)

    assert (refused.status_code, refused.json()["code"]) == (422, "webhook_forbidden")
    assert unknown.status_code == 202, "it may mean something when the job has ended"


@pytest.mark.parametrize("url", [*FORBIDDEN, "http://inside.example/", "http://nobody.example/"])
async def test_nothing_is_sent_to_what_is_forbidden(url: str) -> None:
    """The address counts that is connected to, whatever the API has let through."""
    names = resolving({"inside.example": [METADATA_SERVICE]})
    system = SystemResolver()

    async def resolve(host: str, port: int) -> Any:
        return await (names if host.endswith(".example") else system)(host, port)

    async with sending(resolve) as sender:
        made = await send(sender, url)
    system.close()

    assert made.outcome is Outcome.RETRY
    assert not made.answered
    assert "not a public address" in made.why or "no address" in made.why


async def test_a_name_that_changes_its_address_is_connected_to_where_it_was_checked() -> None:
    """DNS rebinding: the second answer of the name server is never asked for."""
    async with receiving() as good, receiving(host="127.0.0.2", port=good.port) as inside:
        names = {"receiver.example": ["127.0.0.1", "127.0.0.2"]}
        async with sending(resolving(names)) as sender:
            first = await send(sender, good.url("receiver.example"))
            second = await send(sender, good.url("receiver.example"))

    assert first.outcome is Outcome.DELIVERED
    assert "not a public address" in second.why
    assert [got.headers["host"] for got in good.received] == [f"receiver.example:{good.port}"]
    assert inside.connections == 0


async def test_https_goes_to_the_checked_address_with_the_names_certificate(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        skip_or_fail("no openssl to make a certificate")
    make_certificate(tmp_path, "DNS:receiver.example")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    asked: list[str] = []
    tls.sni_callback = lambda _, name, __: asked.append(name)
    trusting = ssl.create_default_context(cafile=tmp_path / "cert.pem")
    names = resolving({"receiver.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]})
    async with receiving(tls=tls) as receiver:
        async with sending(names, tls=trusting) as sender:
            good = await send(sender, receiver.url("receiver.example", "https"))
            wrong_name = await send(sender, receiver.url("other.example", "https"))
        async with sending(names) as strict:
            unknown = await send(strict, receiver.url("receiver.example", "https"))

    assert good.outcome is Outcome.DELIVERED
    assert asked == ["receiver.example", "other.example", "receiver.example"]
    assert "certificate" in wrong_name.why
    assert "certificate" in unknown.why
    assert len(receiver.received) == 1


async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would look up the name by itself."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    async with receiving() as receiver, sending() as sender:
        assert (await send(sender, receiver.url())).outcome is Outcome.DELIVERED
