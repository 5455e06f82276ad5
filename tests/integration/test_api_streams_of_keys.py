"""What a key's open answers are subject to: their number, and the key's end. And what it is not shown."""

import asyncio
from typing import Any

import httpx
import pytest

from millpond.access.api_keys import ApiKeys, KeyLimits, Scope
from millpond.local.server import RedisServer
from millpond.messages import JobRequest, Priority
from tests.integration.conftest import RunningApi, StartApi, listening, make_key

WITHIN_S = 2.0
# What is measured is not our own slowness.
SLACK_S = 0.5


class Made:
    """A key of the API's queue, and what it can do."""

    def __init__(self, id: str, token: str) -> None:
        self.id = id
        self.headers = {"X-API-Key": token}


async def make(api: RunningApi, *, limits: KeyLimits | None = None, **options: Any) -> Made:
    keys = ApiKeys(api.services.redis, api.queue.keys)
    key, token = await keys.create("acme", [Scope.SUBMIT, Scope.READ], limits=limits, **options)
    return Made(key.id, token)


async def submit(api: RunningApi, key: Made, **fields: Any) -> str:
    body = {"prompt": "hello", **fields}
    answer = await api.http.post("/v1/jobs", json=body, headers=key.headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def test_what_a_revoked_key_has_open_ends_within_two_seconds(keyed_api: RunningApi) -> None:
    revoked, other = await make(keyed_api), await make(keyed_api)
    id = await submit(keyed_api, revoked)
    events = f"/v1/jobs/{id}/events"
    poll = asyncio.create_task(
        keyed_api.http.get(f"/v1/jobs/{id}?wait=30", headers=revoked.headers)
    )
    chat = {"messages": [{"role": "user", "content": "a"}]}
    whole = asyncio.create_task(
        keyed_api.http.post("/v1/chat/completions", json=chat, headers=revoked.headers)
    )
    async with (
        keyed_api.http.stream("GET", events, headers=revoked.headers) as stream,
        keyed_api.http.stream("GET", events, headers=other.headers) as kept,
    ):
        lines, kept_lines = stream.aiter_lines(), kept.aiter_lines()
        assert (await anext(lines)).startswith("retry:")
        assert (await anext(kept_lines)).startswith("retry:")
        async with asyncio.timeout(5):
            while await keyed_api.queue.depth() < 2:
                await asyncio.sleep(0.01)
        await ApiKeys(keyed_api.services.redis, keyed_api.queue.keys).revoke(revoked.id)
        async with asyncio.timeout(WITHIN_S + SLACK_S):
            assert [line async for line in lines if line] == []
            assert (await poll).status_code == 401
            assert (await whole).status_code == 401
        # The completion's own job went with it; the other key still hears of the first.
        async with asyncio.timeout(5):
            while await keyed_api.queue.depth() > 1:
                await asyncio.sleep(0.01)
        await keyed_api.complete(await keyed_api.claim())
        assert "event: finished" in [line async for line in kept_lines]


async def test_open_answers_of_a_key_are_bounded(keyed_api: RunningApi) -> None:
    few = await make(keyed_api, limits=KeyLimits(open_streams=2))
    id = await submit(keyed_api, few)
    path = f"/v1/jobs/{id}"
    async with keyed_api.http.stream("GET", f"{path}/events", headers=few.headers) as stream:
        assert stream.status_code == 200
        poll = asyncio.create_task(keyed_api.http.get(f"{path}?wait=30", headers=few.headers))
        await listening(keyed_api, id)
        held = keyed_api.services.open_answers
        async with asyncio.timeout(5):
            while [key.answers for key in held._open.values()] != [2]:
                await asyncio.sleep(0.01)
        chat = {"messages": [{"role": "user", "content": "a"}]}
        refused = [
            await keyed_api.http.get(f"{path}/events", headers=few.headers),
            await keyed_api.http.get(f"{path}?wait=1", headers=few.headers),
            await keyed_api.http.post("/v1/chat/completions", json=chat, headers=few.headers),
        ]
        for answer in refused:
            assert answer.status_code == 429
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["code"] == "too_many_streams"
        assert refused[0].json()["violated-policies"] == ["open_streams"]
        assert "2 event streams" in refused[0].json()["detail"]
        # A look without a wait is none of them, nor is another key's stream.
        assert (await keyed_api.http.get(path, headers=few.headers)).status_code == 200
        more = await make(keyed_api)
        assert (await keyed_api.http.get(f"{path}?wait=0.01", headers=more.headers)).is_success
        await keyed_api.complete(await keyed_api.claim())
        assert (await poll).status_code == 200
    async with asyncio.timeout(5):
        while any(key.answers for key in held._open.values()):
            await asyncio.sleep(0.01)
    assert await keyed_api.queue.depth() == 0


async def test_the_number_for_other_keys_is_a_setting(
    redis_server: RedisServer, start_api: StartApi
) -> None:
    async with start_api(redis_server.url, auth="on", max_streams_per_key=1) as api:
        key = await make(api)
        id = await submit(api, key)
        events = f"/v1/jobs/{id}/events"
        async with api.http.stream("GET", events, headers=key.headers):
            assert (await api.http.get(events, headers=key.headers)).status_code == 429
    # Without keys there is nobody to count for.
    async with start_api(redis_server.url, max_streams_per_key=1) as api:
        id = await api.submit()
        async with api.http.stream("GET", f"/v1/jobs/{id}/events"):
            answer = await api.http.get(f"/v1/jobs/{id}?wait=0.01")
            assert answer.status_code == 200


async def test_a_priority_can_be_withheld(keyed_api: RunningApi) -> None:
    slow = await make(keyed_api, priorities=[Priority.BATCH, Priority.NORMAL])
    job = {"prompt": "a", "priority": "interactive"}

    async def post(path: str, body: Any) -> httpx.Response:
        return await keyed_api.http.post(path, json=body, headers=slow.headers)

    refused = await post("/v1/jobs", job)
    assert (refused.status_code, refused.json()["code"]) == (403, "priority_forbidden")
    assert "may not use 'interactive'; it may use normal, batch" in refused.json()["detail"]
    assert refused.json()["errors"][0]["field"] == "priority"
    bulk = (await post("/v1/jobs/bulk", {"jobs": [job, {"prompt": "a"}]})).json()["jobs"]
    assert [item["status_code"] for item in bulk] == [403, 202]
    text = {"prompt": "a", "stream": False}
    forbidden = await post("/v1/completions", {**text, "priority": "interactive"})
    assert (forbidden.status_code, forbidden.json()["error"]["param"]) == (403, "priority")

    # One that names none is as urgent as it may be.
    await keyed_api.complete(await keyed_api.claim())
    answer = asyncio.create_task(post("/v1/completions", text))
    async with asyncio.timeout(5):
        while not await keyed_api.queue.depth():
            await asyncio.sleep(0.01)
    claimed = await keyed_api.claim()
    assert JobRequest.from_json(claimed.body).priority is Priority.NORMAL
    await keyed_api.complete(claimed)
    assert (await answer).status_code == 200


async def test_workers_are_named_to_admins_only(keyed_api: RunningApi) -> None:
    """Their names are those of machines."""
    reader = await make_key(keyed_api)
    admin = await make_key(keyed_api, scopes=[Scope.READ, Scope.ADMIN])
    answer = await keyed_api.http.post("/v1/jobs", json={"prompt": "a"}, headers=reader)
    id = answer.json()["id"]
    job = await keyed_api.claim()

    async def state(headers: dict[str, str]) -> dict[str, Any]:
        found: dict[str, Any] = (await keyed_api.http.get(f"/v1/jobs/{id}", headers=headers)).json()
        return found

    assert "worker" not in await state(reader)
    assert (await state(admin))["worker"] == "w1"
    await keyed_api.complete(job, worker="w1")
    assert (await state(admin))["result"]["receipt"]["worker"] == "w1"
    told = await state(reader)
    assert told["result"]["receipt"]["model"] == "m"
    assert "w1" not in str(told)
    events = f"/v1/jobs/{id}/events"
    assert "w1" not in (await keyed_api.http.get(events, headers=reader)).text
    assert "w1" in (await keyed_api.http.get(events, headers=admin)).text


@pytest.mark.parametrize("path", ["/v1/queue", "/metrics"])
async def test_the_routes_with_workers_need_admin(keyed_api: RunningApi, path: str) -> None:
    answer = await keyed_api.http.get(path, headers=await make_key(keyed_api))
    assert answer.status_code == 403
