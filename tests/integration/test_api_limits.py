"""What a key may spend: requests, tokens and unfinished jobs, told in headers and refused with 429."""

import re
from typing import Any

import httpx

from millpond.messages import JobStatus
from tests.integration.conftest import RunningApi, make_key

# 4 tokens of prompt, byte by byte with the simulated engine, and 6 to write.
JOB = {"prompt": "abcd", "raw": True, "max_tokens": 6}
JOB_TOKENS = 10


def left(answer: httpx.Response, name: str) -> int:
    [found] = re.findall(rf'"{name}";r=(\d+);t=\d+', answer.headers["ratelimit"])
    return int(found)


def refused(answer: httpx.Response, limit: str) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert answer.status_code == 429, body
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["violated-policies"] == [limit]
    assert int(answer.headers["retry-after"]) == body["retry_after_s"] >= 1
    return body


async def test_requests_are_counted_down_and_then_refused(keyed_api: RunningApi) -> None:
    headers = await make_key(keyed_api, requests_per_minute=3)
    answers = [await keyed_api.http.get("/v1/jobs/none", headers=headers) for _ in range(4)]

    assert [answer.status_code for answer in answers] == [404, 404, 404, 429]
    assert [left(answer, "requests") for answer in answers] == [2, 1, 0, 0]
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"requests";q=3;w=60'}
    body = refused(answers[-1], "requests")
    assert body["code"] == "limit_exceeded"
    assert "3 requests a minute" in body["detail"]
    assert body["retry_after_s"] <= 20
    # Another key of the same tenant has its own.
    other = await make_key(keyed_api, requests_per_minute=3)
    assert (await keyed_api.http.get("/v1/jobs/none", headers=other)).status_code == 404


async def test_a_key_without_limits_has_no_headers(keyed_api: RunningApi) -> None:
    answer = await keyed_api.http.get("/v1/models", headers=await make_key(keyed_api))
    assert answer.status_code == 200
    assert not {"ratelimit", "ratelimit-policy"} & set(answer.headers)


async def test_tokens_are_paid_by_prompt_and_output_together(keyed_api: RunningApi) -> None:
    limits = {"tokens_per_minute": 25, "requests_per_minute": 100}
    headers = await make_key(keyed_api, **limits)
    answers = [await keyed_api.http.post("/v1/jobs", json=JOB, headers=headers) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [202, 202, 429]
    assert left(answers[0], "tokens") in (15, 16)
    assert left(answers[1], "requests") == 98
    assert '"tokens";q=25;w=60' in answers[0].headers["ratelimit-policy"]
    assert "25 tokens a minute" in refused(answers[2], "tokens")["detail"]
    assert await keyed_api.queue.depth() == 2


async def test_a_job_that_was_not_queued_costs_no_tokens(keyed_api: RunningApi) -> None:
    headers = await make_key(keyed_api, tokens_per_minute=25)
    again = {**headers, "Idempotency-Key": "one"}
    answers = [await keyed_api.http.post("/v1/jobs", json=JOB, headers=again) for _ in range(5)]
    other = await keyed_api.http.post("/v1/jobs", json={**JOB, "seed": 1}, headers=again)

    assert [answer.status_code for answer in answers] == [202] * 5
    assert other.json()["code"] == "idempotency_conflict"
    assert left(other, "tokens") >= 15


async def test_a_bulk_pays_for_all_its_jobs_or_is_refused_whole(keyed_api: RunningApi) -> None:
    headers = await make_key(keyed_api, tokens_per_minute=55)

    async def send(jobs: list[Any]) -> httpx.Response:
        return await keyed_api.http.post("/v1/jobs/bulk", json={"jobs": jobs}, headers=headers)

    first = await send([JOB, {"prompt": ""}, JOB])
    second = await send([JOB] * 5)
    assert [item["status_code"] for item in first.json()["jobs"]] == [202, 422, 202]
    assert left(first, "tokens") in (35, 36)
    refused(second, "tokens")
    assert await keyed_api.queue.depth() == 2


async def test_unfinished_jobs_of_the_tenant_are_limited(keyed_api: RunningApi) -> None:
    limited = await make_key(keyed_api, unfinished_jobs=2)
    free = await make_key(keyed_api)
    stranger = await make_key(keyed_api, "other", unfinished_jobs=1)

    async def post(headers: dict[str, str]) -> httpx.Response:
        return await keyed_api.http.post("/v1/jobs", json=JOB, headers=headers)

    answers = [await post(key) for key in (limited, free, limited, stranger)]
    assert [answer.status_code for answer in answers] == [202, 202, 429, 202]
    body = refused(answers[2], "unfinished_jobs")
    assert (body["code"], "2 unfinished jobs" in body["detail"]) == ("tenant_full", True)
    bulk = {"jobs": [JOB, JOB]}
    items = (await keyed_api.http.post("/v1/jobs/bulk", json=bulk, headers=limited)).json()["jobs"]
    assert [item["problem"]["code"] for item in items] == ["tenant_full"] * 2

    # The end of one makes room for one.
    ended = answers[0].json()["id"]
    gone = await keyed_api.http.delete(f"/v1/jobs/{ended}", headers=limited)
    assert gone.json()["status"] == JobStatus.CANCELLED
    assert [(await post(limited)).status_code for _ in range(2)] == [202, 429]
