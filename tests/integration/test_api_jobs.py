"""One job over HTTP: submitted, looked at, waited for, cancelled."""

import asyncio

from millpond.local.server import RedisServer
from millpond.messages import JobRequest, job_id_from_key
from millpond.queue.claims import Lease
from tests.contract.jobs import a_worker
from tests.integration.conftest import RunningApi, StartApi, listening


async def test_a_submitted_job_is_queued_and_says_where_it_is(api: RunningApi) -> None:
    answer = await api.http.post("/v1/jobs", json={"prompt": "hello", "max_tokens": 5})

    assert answer.status_code == 202
    body = answer.json()
    assert body["status"] == "queued"
    assert answer.headers["location"] == body["links"]["self"] == f"/v1/jobs/{body['id']}"
    assert body["channel"] == api.queue.keys.events(body["id"])
    job = await api.claim()
    assert job.id == body["id"]
    assert JobRequest.from_json(job.body) == JobRequest(prompt="hello", max_tokens=5)


async def test_a_queued_job_tells_its_position_and_why_it_waits(api: RunningApi) -> None:
    await api.submit("first")
    second = await api.submit("second")

    body = (await api.http.get(f"/v1/jobs/{second}")).json()

    assert (body["status"], body["position"], body["ahead"]) == ("queued", 2, 1)
    assert body["reason"] == {"code": "no_worker", "message": "no worker is alive"}
    assert "result" not in body


async def test_with_a_worker_the_reason_counts_the_jobs_ahead(api: RunningApi) -> None:
    await api.queue.beat("w1", a_worker(slots=4, in_flight=4, jobs_per_s=2.0))
    first = await api.submit("first")
    second = await api.submit("second")
    await api.look()

    body = (await api.http.get(f"/v1/jobs/{second}")).json()

    assert body["reason"] == {"code": "behind_others", "message": "behind 1 job"}
    assert body["estimate_s"] == 0.5
    assert (await api.http.get(f"/v1/jobs/{first}")).json()["reason"]["code"] == "slots_busy"


async def test_a_finished_job_has_text_usage_and_metadata(api: RunningApi) -> None:
    id = await api.submit()
    await api.complete(await api.claim(), "forty-two")

    body = (await api.http.get(f"/v1/jobs/{id}")).json()

    assert body["status"] == "succeeded"
    assert body["result"]["text"] == "forty-two"
    assert body["result"]["usage"] == {"prompt_tokens": 3, "completion_tokens": 2}
    assert body["result"]["finish_reason"] == "stop"
    assert "position" not in body
    assert "reason" not in body


async def test_a_long_poll_ends_with_the_job(api: RunningApi) -> None:
    id = await api.submit()
    job = await api.claim()
    poll = asyncio.create_task(api.http.get(f"/v1/jobs/{id}?wait=30"))
    await listening(api, id)

    await api.complete(job)

    async with asyncio.timeout(2):
        assert (await poll).json()["status"] == "succeeded"


async def test_a_long_poll_that_runs_out_answers_how_the_job_stands(api: RunningApi) -> None:
    id = await api.submit()

    answer = await api.http.get(f"/v1/jobs/{id}?wait=0.05")

    assert (answer.status_code, answer.json()["status"]) == (200, "queued")


async def test_cancelling_is_idempotent_and_tells_queued_from_running(api: RunningApi) -> None:
    running = await api.submit("first")
    job = await api.claim()
    queued = await api.submit("second")

    for _ in range(2):
        answer = await api.http.delete(f"/v1/jobs/{queued}")
        assert answer.status_code == 200
        assert answer.json() == {"id": queued, "status": "cancelled", "cancelling": False}
    for _ in range(2):
        answer = await api.http.delete(f"/v1/jobs/{running}")
        assert answer.status_code == 202
        assert answer.json() == {"id": running, "status": "running", "cancelling": True}
    assert (await api.http.get(f"/v1/jobs/{running}")).json()["cancelling"] is True
    assert await api.queue.renew([(job.id, job.fence)]) == [Lease.CANCELLED]


async def test_the_same_key_with_the_same_request_is_one_job(api: RunningApi) -> None:
    headers = {"Idempotency-Key": "order-42"}
    first = await api.http.post("/v1/jobs", json={"prompt": "a", "seed": 1}, headers=headers)
    again = await api.http.post("/v1/jobs", json={"seed": 1, "prompt": "a"}, headers=headers)

    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert first.json()["id"] == job_id_from_key("default", "order-42")
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert await api.queue.depth() == 1


async def test_the_same_key_with_another_request_is_refused(api: RunningApi) -> None:
    headers = {"Idempotency-Key": "order-42"}
    await api.http.post("/v1/jobs", json={"prompt": "a"}, headers=headers)

    answer = await api.http.post("/v1/jobs", json={"prompt": "b"}, headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_conflict")
    assert await api.queue.depth() == 1


async def test_many_at_once_are_all_accepted_once(api: RunningApi) -> None:
    ids = await asyncio.gather(*(api.submit(f"prompt {i}") for i in range(60)))

    assert len(set(ids)) == 60
    assert await api.queue.depth() == 60


async def test_a_deadline_passes_without_any_worker(api: RunningApi) -> None:
    id = await api.submit(deadline_s=0.01)

    body = (await api.http.get(f"/v1/jobs/{id}?wait=10")).json()

    assert body["status"] == "expired"
    assert body["result"]["error"]["code"] == "deadline_exceeded"


async def test_queue_models_and_metrics_show_the_worker(api: RunningApi) -> None:
    state = {
        "state": "ready",
        "model": "simulated",
        "engine": "simulated",
        "backend": "simulated",
        "slots": 4,
        "rows": 1,
        "jobs_per_s": 2.0,
        "slot_share": 0.125,
    }
    await api.queue.beat("w1", a_worker(**state))
    await api.submit(priority="batch")
    await api.look()

    queue = (await api.http.get("/v1/queue")).json()
    models = (await api.http.get("/v1/models")).json()
    metrics = await api.http.get("/metrics")

    assert (queue["depth"], queue["queued"]["batch"], queue["estimate_s"]) == (1, 1, 0.5)
    assert queue["unfinished"] == {"default": 1}
    [worker] = queue["workers"]
    assert worker.items() >= {**state, "id": "w1", "alive": True}.items()
    assert worker["beat_age_ms"] >= 0
    [model] = models["data"]
    assert (model["id"], model["ready"], model["slots"]) == ("simulated", True, 4)
    assert 'millpond_queued_jobs{priority="batch",queue="default"} 1.0' in metrics.text
    assert 'millpond_unfinished_jobs{queue="default",tenant="default"} 1.0' in metrics.text
    own = 'queue="default",worker="w1"'
    assert f'millpond_worker_slot_share{{model="simulated",{own}}} 0.125' in metrics.text
    assert (
        'millpond_worker_info{backend="simulated",device="",dtype="",engine="simulated",'
        f'model="simulated",{own}}} 1.0' in metrics.text
    )
    assert (
        'millpond_http_requests_total{method="POST",route="/v1/jobs",status="202"} 1.0'
        in metrics.text
    )


async def test_a_worker_that_says_nothing_of_itself_harms_no_reader(api: RunningApi) -> None:
    await api.services.redis.hset(api.queue.keys.workers, "odd", "1700000000000 {}")
    id = await api.submit()

    for path in ("/v1/queue", "/v1/models", "/metrics", f"/v1/jobs/{id}"):
        assert (await api.http.get(path)).status_code == 200, path
    assert (await api.http.get("/readyz")).json()["redis"] is True


async def test_the_real_tokenizer_is_not_needed_to_see_a_job(
    redis_server: RedisServer, start_api: StartApi
) -> None:
    async with start_api(redis_server.url, engine="transformers", model="smollm2-135m") as api:
        submitted = await api.queue.submit(JobRequest(prompt="by another way"))

        posted = await api.http.post("/v1/jobs", json={"prompt": "hello"})

        assert (posted.status_code, posted.json()["code"]) == (503, "model_not_ready")
        assert int(posted.headers["retry-after"]) >= 1
        assert (await api.http.get(f"/v1/jobs/{submitted.id}")).status_code == 200
        ready = await api.http.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["tokenizer"] is False
        assert await api.queue.depth() == 1
