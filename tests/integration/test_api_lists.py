"""Lists over HTTP: jobs by status, dead letters, and letters that run again."""

from typing import Any

import pytest

from millpond.messages import FinishReason, JobError, JobResult, JobStatus
from tests.integration.conftest import RunningApi, make_key


async def bury(api: RunningApi, id: str) -> None:
    """Claim until it is that one's turn, and fail it for good."""
    job = await api.claim()
    assert job.id == id
    error = JobError(code="generation_failed", message="broken")
    result = JobResult(
        id=id, status=JobStatus.FAILED, finish_reason=FinishReason.ERROR, error=error
    )
    await api.queue.fail(job.fence, api.queue.options.max_attempts, result)


@pytest.fixture
def one_attempt(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> RunningApi:
    """What fails once is a dead letter."""
    options = api.queue._options_json.replace(b'"max_attempts":3', b'"max_attempts":1')
    monkeypatch.setattr(api.queue, "_options_json", options)
    return api


async def get(api: RunningApi, path: str, **params: Any) -> dict[str, Any]:
    answer = await api.http.get(path, params=params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_jobs_are_listed_by_status_in_pages(api: RunningApi) -> None:
    ids = [await api.submit(f"job {i}") for i in range(5)]
    first = await get(api, "/v1/jobs", status="queued", limit=3)
    second = await get(api, "/v1/jobs", status="queued", limit=3, cursor=first["cursor"])
    assert [job["id"] for job in first["jobs"] + second["jobs"]] == ids
    assert "cursor" not in second
    assert first["jobs"][0]["links"]["self"] == f"/v1/jobs/{ids[0]}"

    await api.complete(await api.claim())
    await api.claim()
    await api.http.delete(f"/v1/jobs/{ids[4]}")
    for status, listed in {
        "succeeded": ids[:1],
        "running": ids[1:2],
        "queued": ids[2:4],
        "cancelled": ids[4:],
        "failed": [],
    }.items():
        found = await get(api, "/v1/jobs", status=status)
        assert [job["id"] for job in found["jobs"]] == listed, status


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({}, "status"),
        ({"status": "lost"}, "status"),
        ({"status": "queued", "limit": 0}, "limit"),
        ({"status": "queued", "limit": 201}, "limit"),
        ({"status": "queued", "cursor": "x"}, "cursor"),
        ({"status": "queued", "model": "gpt"}, "model"),
    ],
)
async def test_bad_questions_name_the_parameter(
    api: RunningApi, params: dict[str, Any], field: str
) -> None:
    answer = await api.http.get("/v1/jobs", params=params)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


async def test_a_dead_letter_is_looked_at_and_run_again(one_attempt: RunningApi) -> None:
    api = one_attempt
    id = await api.submit("what kills", max_tokens=7, metadata={"a": "b"})
    await bury(api, id)

    [listed] = (await get(api, "/v1/dead"))["jobs"]
    assert (listed["id"], listed["error"]["code"]) == (id, "generation_failed")
    shown = await get(api, f"/v1/dead/{id}")
    assert shown["request"] == {"prompt": "what kills", "max_tokens": 7, "metadata": {"a": "b"}}

    retry = f"/v1/dead/{id}/retry"
    accepted = await api.http.post(retry)
    assert accepted.status_code == 202, accepted.text
    again = accepted.json()["id"]
    assert again != id
    assert (await get(api, "/v1/dead"))["jobs"] == []
    assert (await api.http.post(retry)).status_code == 404
    # The old one keeps its end; the new one is a job like any other.
    assert (await get(api, f"/v1/jobs/{id}"))["status"] == "failed"
    job = await api.claim()
    assert job.id == again
    await api.complete(job)
    assert (await get(api, f"/v1/jobs/{again}"))["status"] == "succeeded"


async def test_a_retry_that_was_cut_off_runs_it_once(one_attempt: RunningApi) -> None:
    """Accepted, but not yet off the list: the next try finds the same job."""
    api = one_attempt
    id = await api.submit()
    await bury(api, id)
    first = (await api.http.post(f"/v1/dead/{id}/retry")).json()["id"]
    await api.services.redis.zadd(api.queue.keys.dead, {id: 1})
    second = await api.http.post(f"/v1/dead/{id}/retry")
    assert (second.status_code, second.json()["id"]) == (202, first)
    assert await api.queue.depth() == 1


async def test_other_tenants_see_none_of_it(keyed_api: RunningApi) -> None:
    mine, theirs = await make_key(keyed_api, "acme"), await make_key(keyed_api, "other")
    answer = await keyed_api.http.post("/v1/jobs", json={"prompt": "a"}, headers=mine)
    id = answer.json()["id"]
    options = keyed_api.queue._options_json.replace(b'"max_attempts":3', b'"max_attempts":1')
    keyed_api.queue._options_json = options
    await bury(keyed_api, id)
    for headers, number in ((mine, 1), (theirs, 0)):
        for path in ("/v1/dead", "/v1/jobs?status=failed"):
            found = (await keyed_api.http.get(path, headers=headers)).json()["jobs"]
            assert len(found) == number, path
    for method, path in (("GET", f"/v1/dead/{id}"), ("POST", f"/v1/dead/{id}/retry")):
        refused = await keyed_api.http.request(method, path, headers=theirs)
        unknown = await keyed_api.http.request(method, path.replace(id, "nothing"), headers=theirs)
        assert refused.status_code == unknown.status_code == 404
        assert refused.content == unknown.content
    assert (await keyed_api.http.post(f"/v1/dead/{id}/retry", headers=mine)).status_code == 202
