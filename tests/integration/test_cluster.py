"""One API in front of queues that lie on different nodes of a cluster."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from millpond.client import Client
from millpond.errors import NoWebhooksError, QueueUnavailableError
from millpond.local.server import LOOPBACK, bundled_server
from millpond.queue.connection import Connections
from millpond.queue.directory import AnnouncedQueue, QueueDirectory
from millpond.queue.job_queue import JobQueue
from millpond.queue.keys import QUEUES, Keys
from tests.contract.jobs import put, take
from tests.integration.conftest import StartApi, make_key
from tests.integration.test_several_models import HOME, OTHER, worker_of
from tests.replicated import InCluster, asked, in_cluster

OTHER_QUEUE = "proofs"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[InCluster]:
    binary = bundled_server()
    assert binary is not None
    async with in_cluster(tmp_path, binary, replicated=False) as running:
        yield running


@pytest.fixture
async def connections(cluster: InCluster) -> AsyncIterator[Connections]:
    connections = Connections(cluster.url)
    yield connections
    await connections.aclose()


async def test_an_api_serves_queues_of_several_nodes(
    cluster: InCluster, connections: Connections, start_api: StartApi
) -> None:
    places = [
        await cluster.primary_of(k) for k in (Keys("default").counts, Keys(OTHER_QUEUE).counts)
    ]
    assert places[0] is not places[1]
    assert await cluster.primary_of(QUEUES) not in places, "the directory is on a third"
    about = AnnouncedQueue(model=OTHER, source=OTHER, engine="simulated")
    await QueueDirectory(connections.to_directory()).announce(OTHER_QUEUE, about)
    other = JobQueue(connections.to_queue(OTHER_QUEUE), OTHER_QUEUE)
    async with start_api(cluster.url, auth="on") as api:
        key = await make_key(api, requests_per_minute=100)
        await api.services.directory.refresh()
        jobs = {
            "jobs": [{"prompt": "a", "max_tokens": 4, "model": m} for m in (HOME, OTHER, OTHER)]
        }

        answer = await api.http.post("/v1/jobs/bulk", json=jobs, headers=key)

        assert '"requests";r=99' in answer.headers["ratelimit"]
        ids = [item["id"] for item in answer.json()["jobs"]]
        following = [
            asyncio.create_task(api.http.get(f"/v1/jobs/{id}/events", headers=key)) for id in ids
        ]
        home = JobQueue(connections.to_queue("default"), "default")
        async with worker_of(home, HOME), worker_of(other, OTHER):
            for events in await asyncio.gather(*following):
                assert "event: finished" in events.text
        ended = "/v1/jobs?status=succeeded&model="
        pages = [(await api.http.get(ended + model, headers=key)).json() for model in (HOME, OTHER)]
        assert [len(page["jobs"]) for page in pages] == [1, 2]
        batch = {
            "input_file_id": "file-1",
            "endpoint": "/v1/completions",
            "completion_window": "24h",
        }
        refused = await api.http.post("/v1/batches", json=batch, headers=key)
        assert refused.status_code == 400
        assert "no batches in a Redis Cluster" in refused.text
        told = {"prompt": "a", "webhook_url": "https://93.184.215.14/hook"}
        refused = await api.http.post("/v1/jobs", json=told, headers=key)
        assert (refused.status_code, refused.json()["code"]) == (422, "no_webhooks")
        assert refused.json()["errors"][0]["field"] == "webhook_url"
        bulk = await api.http.post("/v1/jobs/bulk", json={"jobs": [told]}, headers=key)
        assert bulk.json()["jobs"][0]["problem"]["code"] == "no_webhooks"
    async with Client(cluster.url) as client:
        with pytest.raises(NoWebhooksError):
            await client.submit("a", webhook_url="https://93.184.215.14/hook")


async def test_a_queue_is_followed_to_another_node(
    cluster: InCluster, connections: Connections
) -> None:
    """Its slot is moved, as when a cluster grows, under connections that are open. Its keys are in two
    places meanwhile, so nothing can be done with them, and nothing is lost."""
    queue = JobQueue(connections.to_queue("default"), "default")
    await put(queue, "before")
    slot = key_slot(queue.keys.counts.encode())
    old = await cluster.primary_of(queue.keys.counts)
    new = next(server for server in cluster.servers if server is not old)
    async with asked(old.options.port) as source, asked(new.options.port) as target:
        ids = {
            redis: (await redis.execute_command("CLUSTER", "MYID")).decode()
            for redis in (source, target)
        }
        await target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        await source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        await move_keys(source, slot, new.options.port, number=3)
        with pytest.raises(QueueUnavailableError):
            await put(queue, "meanwhile")
        await move_keys(source, slot, new.options.port, number=1_000)
        for redis in (target, source):
            await redis.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])

        await put(queue, "after")

        assert await target.hget(queue.keys.job("after"), "status") == b"queued"
        assert not await target.exists(queue.keys.job("meanwhile"))
    assert [job.id for job in await take(queue)] == ["before", "after"]


async def move_keys(source: Redis, slot: int, port: int, *, number: int) -> None:
    keys = await source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, number)
    await source.execute_command("MIGRATE", LOOPBACK, port, "", 0, 1_000, "KEYS", *keys)
