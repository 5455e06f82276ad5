"""The API as a real server on the test's own event loop, in front of a real Redis-protocol server."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from api.http.server import ApiServer
from api.services import Services, services_of
from millpond.access.api_keys import ApiKeys, KeyLimits, Scope
from millpond.local.server import RedisServer
from millpond.messages import FinishReason, JobResult, JobStatus, Receipt, Usage
from millpond.queue.claims import ClaimedJob
from millpond.queue.connection import connect
from millpond.queue.job_queue import JobQueue
from millpond.settings import Settings

PLENTY = 1_000_000


@dataclass
class RunningApi:
    """``http`` talks to it over loopback; ``queue`` is what a worker would use."""

    app: FastAPI
    server: ApiServer
    http: httpx.AsyncClient
    queue: JobQueue
    stopped: asyncio.Task[None]

    @property
    def services(self) -> Services:
        return services_of(self.app)

    async def submit(self, prompt: str = "hello", **fields: Any) -> str:
        answer = await self.http.post("/v1/jobs", json={"prompt": prompt, **fields})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def look(self) -> None:
        """Take the snapshot of the queue anew, which else serves for a second."""
        await self.services.home.monitor.state(max_age_s=0)

    async def claim(self) -> ClaimedJob:
        """Take the next job as a worker would."""
        claim = await self.queue.claim("w1", 1, budget_tokens=PLENTY, capacity_tokens=PLENTY)
        [job] = claim.jobs
        return job

    async def complete(
        self, job: ClaimedJob, text: str = "done", worker: str | None = None
    ) -> None:
        """End it; with a receipt if the worker is named."""
        result = JobResult(
            id=job.id,
            status=JobStatus.SUCCEEDED,
            finish_reason=FinishReason.STOP,
            text=text,
            usage=Usage(prompt_tokens=3, completion_tokens=2),
            receipt=None if worker is None else receipt(worker),
        )
        await self.queue.complete([(job.fence, result)])


def receipt(worker: str) -> Receipt:
    return Receipt(
        attempt=1,
        worker=worker,
        model="m",
        engine="simulated",
        dtype="none",
        device="none",
        seed=1,
        claimed_ms=1,
        queue_wait_ms=1,
        window_jobs=1,
        group_rows=1,
        batch_rows=1,
        first_token_ms=1,
        run_ms=1,
    )


async def make_key(
    api: RunningApi,
    tenant: str = "acme",
    scopes: Sequence[Scope] = (Scope.SUBMIT, Scope.READ),
    **limits: int,
) -> dict[str, str]:
    """A new key of the API's queue, as the header that carries it."""
    keys = ApiKeys(api.services.redis, api.queue.keys)
    _, token = await keys.create(tenant, scopes, limits=KeyLimits(**limits))
    return {"Authorization": f"Bearer {token}"}


async def listening(api: RunningApi, id: str, *, wanted: bool = True) -> None:
    """Until somebody listens to the job's channel, or nobody does any more."""
    channel = api.queue.keys.events(id)
    async with asyncio.timeout(10):
        while bool((await api.services.redis.pubsub_numsub(channel))[0][1]) is not wanted:
            await asyncio.sleep(0.005)


StartApi = Callable[..., AbstractAsyncContextManager[RunningApi]]


@pytest.fixture
def start_api(tmp_path: Path) -> StartApi:
    """``async with start_api(redis_url, **settings)``."""

    @contextlib.asynccontextmanager
    async def start(redis_url: str, **settings: Any) -> AsyncIterator[RunningApi]:
        chosen = {"engine": "simulated", "cache_dir": tmp_path / "cache", **settings}
        made = Settings(redis_url=redis_url, **chosen)
        app = create_app(made)
        # Connections are taken from here on, and answered once the server has started.
        listener = socket.create_server(("127.0.0.1", 0))
        # As on a server's own sockets; else each small answer waits 40 ms for an acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = ApiServer(app, made)
        stopped = asyncio.create_task(server.serve(sockets=[listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        redis = connect(redis_url)
        try:
            async with httpx.AsyncClient(base_url=url, timeout=30.0) as http:
                assert (await http.get("/healthz")).status_code == 200
                queue = JobQueue(redis, made.queue, made.queue_options())
                yield RunningApi(app, server, http, queue, stopped)
        finally:
            server.should_exit = True
            await stopped
            await redis.aclose()

    return start


@pytest.fixture
async def api(redis_server: RedisServer, start_api: StartApi) -> AsyncIterator[RunningApi]:
    async with start_api(redis_server.url) as running:
        yield running


@pytest.fixture
async def keyed_api(redis_server: RedisServer, start_api: StartApi) -> AsyncIterator[RunningApi]:
    """One that asks for keys, see `make_key`."""
    async with start_api(redis_server.url, auth="on") as running:
        yield running
