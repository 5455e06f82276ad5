"""One API in front of two queues, each with a model and a worker of its own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import openai
import pytest

from millpond.messages import JobStatus
from millpond.models.presets import PRESETS
from millpond.models.tokenization import ByteTokenizer
from millpond.queue.connection import connect
from millpond.queue.directory import AnnouncedQueue, QueueDirectory
from millpond.queue.job_queue import JobQueue
from tests.integration.conftest import RunningApi
from worker.engines.base import EngineConfig
from worker.engines.simulated import SimulatedEngine
from worker.window import WindowPolicy
from worker.worker import Worker, WorkerOptions

HOME, OTHER = "simulated", "vibethinker-1.5b"
OTHER_QUEUE = "maths"


@contextlib.asynccontextmanager
async def worker_of(queue: JobQueue, model: str) -> AsyncIterator[None]:
    tokenizer, preset = ByteTokenizer(), PRESETS[model]
    config = EngineConfig("simulated", None, preset, slots=4)
    options = WorkerOptions(f"w-{model}", WindowPolicy.at_once(4), heartbeat_s=0.05, grace_s=5.0)
    worker = Worker(queue, lambda: SimulatedEngine(config, tokenizer), tokenizer, preset, options)
    task = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.stop()
        worker.stop()
        await task


@dataclass
class Two:
    api: RunningApi
    other: JobQueue


@pytest.fixture
async def two(api: RunningApi) -> AsyncIterator[Two]:
    """The other model is announced, as its worker does it, and has no worker yet."""
    redis = connect(api.services.settings.redis_url)
    about = AnnouncedQueue(model=OTHER, source=OTHER, engine="simulated")
    await QueueDirectory(redis).announce(OTHER_QUEUE, about)
    await api.services.directory.refresh()
    yield Two(api, JobQueue(redis, OTHER_QUEUE))
    await redis.aclose()


async def submitted(two: Two, model: str | None, **fields: object) -> str:
    body = {"prompt": "hi", "max_tokens": 4, **({} if model is None else {"model": model})}
    return await two.api.submit(**{**body, **fields})


async def test_the_model_of_a_request_chooses_the_queue(two: Two) -> None:
    ids = {model: await submitted(two, model) for model in (None, HOME, OTHER)}

    assert await two.api.queue.depth() == 2
    assert await two.other.depth() == 1
    async with worker_of(two.api.queue, HOME), worker_of(two.other, OTHER):
        for model, id in ids.items():
            found = (await two.api.http.get(f"/v1/jobs/{id}", params={"wait": 20})).json()
            assert found["result"]["receipt"]["model"] == (model or HOME)


async def test_a_job_elsewhere_is_found_followed_and_cancelled(two: Two) -> None:
    waits = await submitted(two, OTHER)
    found = (await two.api.http.get(f"/v1/jobs/{waits}")).json()
    assert (found["status"], found["reason"]["code"]) == ("queued", "no_worker")

    assert (await two.api.http.delete(f"/v1/jobs/{waits}")).json()["status"] == "cancelled"
    events = (await two.api.http.get(f"/v1/jobs/{waits}/events")).text
    assert "event: finished" in events
    # Also by a process that did not accept it.
    two.api.services.directory.remember(waits, two.api.services.home)
    assert (await two.api.http.get(f"/v1/jobs/{waits}")).json()["status"] == "cancelled"
    assert (await two.api.http.get("/v1/jobs/nobody")).status_code == 404


async def test_a_bulk_spreads_over_the_queues(two: Two) -> None:
    jobs = [{"prompt": "a", "model": m} for m in (HOME, OTHER, HOME, "gpt-9", OTHER)]

    answer = (await two.api.http.post("/v1/jobs/bulk", json={"jobs": jobs})).json()

    assert [item["status_code"] for item in answer["jobs"]] == [202, 202, 202, 422, 202]
    assert (await two.api.queue.depth(), await two.other.depth()) == (2, 2)
    assert answer["jobs"][3]["problem"]["code"] == "unknown_model"


async def test_the_models_are_listed_with_their_limits(two: Two) -> None:
    async with worker_of(two.other, OTHER), asyncio.timeout(20):
        while True:
            listed = (await two.api.http.get("/v1/models")).json()["data"]
            if any(entry["ready"] for entry in listed):
                break
            await asyncio.sleep(0.05)

    assert [(entry["id"], entry["ready"]) for entry in listed] == [(HOME, False), (OTHER, True)]
    limits = PRESETS[OTHER]
    assert listed[1]["max_prompt_tokens"] == limits.max_prompt_tokens
    assert listed[1]["max_output_tokens"] == limits.max_output_tokens


async def test_an_unknown_model_is_told_those_that_exist(two: Two) -> None:
    answer = await two.api.http.post("/v1/jobs", json={"prompt": "hi", "model": "gpt-9"})
    assert answer.status_code == 422
    assert answer.json()["code"] == "unknown_model"
    assert OTHER in answer.json()["detail"]

    url = f"{two.api.http.base_url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError, match=OTHER):
            await client.completions.create(model="gpt-9", prompt="hi")


async def test_each_model_has_limits_of_its_own(two: Two) -> None:
    too_long = {"prompt": "x" * (PRESETS[OTHER].max_prompt_tokens + 1), "raw": True}

    refused = await two.api.http.post("/v1/jobs", json={**too_long, "model": OTHER})
    taken = await two.api.http.post("/v1/jobs", json={**too_long, "model": HOME})

    assert (refused.status_code, refused.json()["code"]) == (422, "prompt_too_long")
    assert taken.status_code == 202


async def test_one_key_is_not_two_jobs_of_two_models(two: Two) -> None:
    headers = {"Idempotency-Key": "k"}
    body = {"prompt": "hi"}
    first = await two.api.http.post("/v1/jobs", json={**body, "model": OTHER}, headers=headers)
    again = await two.api.http.post("/v1/jobs", json={**body, "model": OTHER}, headers=headers)
    other = await two.api.http.post("/v1/jobs", json={**body, "model": HOME}, headers=headers)

    assert first.json()["id"] == again.json()["id"]
    assert again.headers["Idempotency-Replayed"] == "true"
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")


async def test_each_queue_shows_its_state(two: Two) -> None:
    await submitted(two, OTHER)

    home = (await two.api.http.get("/v1/queue")).json()
    other = (await two.api.http.get("/v1/queue", params={"model": OTHER})).json()

    assert (home["model"], home["depth"]) == (HOME, 0)
    assert (other["queue"], other["model"], other["depth"]) == (OTHER_QUEUE, OTHER, 1)


async def test_a_queue_that_is_forgotten_is_no_longer_served(two: Two) -> None:
    redis = two.api.services.redis
    assert await QueueDirectory(redis).forget(OTHER_QUEUE)
    await two.api.services.directory.refresh()

    answer = await two.api.http.post("/v1/jobs", json={"prompt": "hi", "model": OTHER})
    assert answer.json()["code"] == "unknown_model"


async def test_completions_by_the_other_model(two: Two) -> None:
    url = f"{two.api.http.base_url}/v1"
    async with (
        worker_of(two.other, OTHER),
        openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        raw = await client.completions.with_raw_response.create(
            model=OTHER, prompt="hi", max_tokens=4
        )
    assert raw.parse().model == OTHER
    view = await two.api.services.directory.holding(raw.headers["x-job-id"], "default")
    assert view.name == OTHER_QUEUE
    found = await view.results.get(raw.headers["x-job-id"])
    assert found.status is JobStatus.SUCCEEDED
