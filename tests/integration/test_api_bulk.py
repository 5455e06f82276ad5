"""Many jobs in one call: each on its own, in order, within bounds."""

import time

from millpond.local.server import RedisServer
from tests.integration.conftest import RunningApi, StartApi


async def test_each_job_is_answered_in_its_place(api: RunningApi) -> None:
    jobs = [{"prompt": "a"}, {"prompt": ""}, {"prompt": "c", "priority": "batch"}]

    answer = await api.http.post("/v1/jobs/bulk", json={"jobs": jobs})

    body = answer.json()
    assert (answer.status_code, body["accepted"], body["refused"]) == (200, 2, 1)
    first, second, third = body["jobs"]
    assert (first["index"], first["status_code"], first["status"]) == (0, 202, "queued")
    assert (second["index"], second["status_code"]) == (1, 422)
    assert second["problem"]["errors"][0]["field"] == "prompt"
    assert (await api.http.get(f"/v1/jobs/{third['id']}")).json()["priority"] == "batch"
    assert await api.queue.depth() == 2


async def test_a_thousand_jobs_leave_the_loop_free(api: RunningApi) -> None:
    jobs = [{"prompt": f"{i} " + "word " * 80} for i in range(1_000)]
    started_s = time.monotonic()

    answer = await api.http.post("/v1/jobs/bulk", json={"jobs": jobs})

    assert answer.json()["accepted"] == 1_000
    assert len({item["id"] for item in answer.json()["jobs"]}) == 1_000
    assert await api.queue.depth() == 1_000
    assert time.monotonic() - started_s < 10


async def test_a_bulk_may_be_larger_than_a_single_job(api: RunningApi) -> None:
    large = {"jobs": [{"prompt": "a" * 30_000}] * 100}

    answer = await api.http.post("/v1/jobs/bulk", json=large)
    too_large = await api.http.post("/v1/jobs/bulk", content=b" " * (16 * 1024 * 1024 + 1))

    assert answer.json()["accepted"] == 100
    assert (too_large.status_code, too_large.json()["errors"][0]["limit"]) == (413, 16_777_216)


async def test_a_repeated_call_with_a_key_adds_nothing(api: RunningApi) -> None:
    headers = {"Idempotency-Key": "nightly-7"}
    jobs = {"jobs": [{"prompt": "a"}, {"prompt": "a"}]}
    first = (await api.http.post("/v1/jobs/bulk", json=jobs, headers=headers)).json()
    again = (await api.http.post("/v1/jobs/bulk", json=jobs, headers=headers)).json()
    jobs["jobs"][1] = {"prompt": "b"}
    changed = (await api.http.post("/v1/jobs/bulk", json=jobs, headers=headers)).json()

    ids = [item["id"] for item in first["jobs"]]
    assert len(set(ids)) == 2
    assert [item["id"] for item in again["jobs"]] == ids
    assert [item.get("replayed") for item in first["jobs"] + again["jobs"]] == [
        None,
        None,
        True,
        True,
    ]
    assert changed["jobs"][0]["replayed"] is True
    assert changed["jobs"][1]["problem"]["code"] == "idempotency_conflict"
    assert await api.queue.depth() == 2


async def test_what_does_not_fit_into_the_queue_is_refused_alone(
    redis_server: RedisServer, start_api: StartApi
) -> None:
    async with start_api(redis_server.url, max_depth=2) as api:
        jobs = {"jobs": [{"prompt": str(i)} for i in range(3)]}

        items = (await api.http.post("/v1/jobs/bulk", json=jobs)).json()["jobs"]

        assert [item["status_code"] for item in items] == [202, 202, 429]
        assert items[2]["problem"]["retry_after_s"] == 30
