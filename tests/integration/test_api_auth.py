"""Who gets in: keys, scopes, and answers that tell a stranger nothing."""

import asyncio
import re

import pytest

from api.access.gate import REMEMBER_S
from millpond.access.api_keys import ApiKeys, Scope
from millpond.local.server import RedisServer
from tests.integration.conftest import RunningApi, StartApi, make_key

BODY = {"prompt": "a"}
# Each route, the scope that it needs, and what it answers to a key that has it.
ROUTES = [
    ("POST", "/v1/jobs", Scope.SUBMIT, 415),
    ("POST", "/v1/jobs/bulk", Scope.SUBMIT, 415),
    ("POST", "/v1/chat/completions", Scope.SUBMIT, 415),
    ("POST", "/v1/completions", Scope.SUBMIT, 415),
    ("GET", "/v1/jobs/nothing", Scope.READ, 404),
    ("GET", "/v1/jobs/nothing/events", Scope.READ, 404),
    ("DELETE", "/v1/jobs/nothing", Scope.SUBMIT, 404),
    ("GET", "/v1/jobs", Scope.READ, 422),
    ("GET", "/v1/dead", Scope.READ, 200),
    ("GET", "/v1/dead/nothing", Scope.READ, 404),
    ("POST", "/v1/dead/nothing/retry", Scope.SUBMIT, 404),
    ("GET", "/v1/models", Scope.READ, 200),
    ("POST", "/v1/files", Scope.SUBMIT, 415),
    ("GET", "/v1/files", Scope.READ, 200),
    ("GET", "/v1/files/nothing", Scope.READ, 404),
    ("GET", "/v1/files/nothing/content", Scope.READ, 404),
    ("DELETE", "/v1/files/nothing", Scope.SUBMIT, 404),
    ("POST", "/v1/batches", Scope.SUBMIT, 415),
    ("GET", "/v1/batches", Scope.READ, 200),
    ("GET", "/v1/batches/nothing", Scope.READ, 404),
    ("POST", "/v1/batches/nothing/cancel", Scope.SUBMIT, 404),
    ("GET", "/v1/queue", Scope.ADMIN, 200),
    ("GET", "/v1/queue/events", Scope.ADMIN, 200),
    ("GET", "/metrics", Scope.ADMIN, 200),
]
OPEN = {"/healthz": 200, "/readyz": 503, "/openapi.json": 200}  # no worker is alive


async def test_the_table_of_routes_is_whole(keyed_api: RunningApi) -> None:
    described = (await keyed_api.http.get("/openapi.json")).json()["paths"]
    found = {
        (method.upper(), re.sub(r"\{\w+\}", "nothing", path))
        for path, methods in described.items()
        for method, operation in methods.items()
        if operation.get("security")
    }
    assert found == {(method, path) for method, path, _, _ in ROUTES}
    paths = {re.sub(r"\{\w+\}", "nothing", path) for path in described}
    assert paths - {path for _, path, _, _ in ROUTES} == {"/healthz", "/readyz"}


async def test_each_route_needs_its_scope_and_no_more(keyed_api: RunningApi) -> None:
    keys = {scope: await make_key(keyed_api, scopes=[scope]) for scope in Scope}
    for method, path, needed, status in ROUTES:
        assert (await keyed_api.http.request(method, path)).status_code == 401
        for scope, headers in keys.items():
            # The queue's events have no end.
            async with keyed_api.http.stream(method, path, headers=headers) as answer:
                if scope is needed:
                    assert answer.status_code == status, (method, path)
                    continue
                await answer.aread()
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (403, "forbidden"), (path, scope)
            assert f"the scope '{needed}'" in error["message"]
            assert f'scope="{needed}"' in answer.headers["www-authenticate"]


async def test_what_watches_the_process_needs_no_key(keyed_api: RunningApi) -> None:
    for path, status in OPEN.items():
        assert (await keyed_api.http.get(path)).status_code == status, path


async def test_every_bad_key_gets_the_same_answer(keyed_api: RunningApi) -> None:
    keys = ApiKeys(keyed_api.services.redis, keyed_api.queue.keys)
    revoked, revoked_token = await keys.create("acme", [Scope.READ])
    await keys.revoke(revoked.id)
    _, good = await keys.create("acme", [Scope.READ])
    bad = {
        "none": {},
        "malformed": {"Authorization": "Bearer sesame"},
        "empty": {"Authorization": "Bearer"},
        "another scheme": {"Authorization": "Basic bXA6bXA="},
        "unknown": {"Authorization": f"Bearer mp_{'a' * 16}_{'a' * 48}"},
        "wrong secret": {"Authorization": f"Bearer {good[:-4]}aaaa"},
        "revoked": {"Authorization": f"Bearer {revoked_token}"},
        "revoked, in the other header": {"X-API-Key": revoked_token},
        "not ASCII": {"Authorization": "Bearer m\xfc".encode("latin-1")},
        "very long": {"Authorization": "Bearer " + "a" * 5_000},
        "a good one behind a bad one": {"Authorization": "Bearer mp_x", "X-API-Key": good},
    }
    answers = {}
    for name, headers in bad.items():
        answer = await keyed_api.http.get("/v1/models", headers=headers)
        assert answer.status_code == 401, name
        assert answer.headers["www-authenticate"] == 'Bearer realm="millpond"', name
        shown = {k: v for k, v in answer.headers.items() if k != "date"}
        answers[name] = (answer.content, tuple(sorted(shown.items())))
    assert len(set(answers.values())) == 1, answers
    for headers in ({"Authorization": f"bearer {good}"}, {"X-API-Key": good}):
        assert (await keyed_api.http.get("/v1/models", headers=headers)).status_code == 200


async def test_a_revoked_key_is_refused_within_two_seconds(keyed_api: RunningApi) -> None:
    keys = ApiKeys(keyed_api.services.redis, keyed_api.queue.keys)
    key, token = await keys.create("acme", [Scope.READ])
    headers = {"X-API-Key": token}
    assert (await keyed_api.http.get("/v1/models", headers=headers)).status_code == 200
    await keys.revoke(key.id)
    async with asyncio.timeout(REMEMBER_S + 0.5):
        while (await keyed_api.http.get("/v1/models", headers=headers)).status_code != 401:
            await asyncio.sleep(0.05)


async def test_without_redis_nobody_can_be_told_from_anybody(
    redis_server: RedisServer, start_api: StartApi
) -> None:
    async with start_api(redis_server.url, auth="on") as api:
        headers = await make_key(api)
        await redis_server.stop()
        answer = await api.http.get("/v1/models", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (503, "queue_unavailable")
        assert answer.headers["retry-after"]
        assert (await api.http.get("/v1/models")).status_code == 401
        assert (await api.http.get("/healthz")).status_code == 200


async def test_a_key_comes_before_everything_else_that_is_wrong(keyed_api: RunningApi) -> None:
    """A stranger learns nothing of the rules, and cannot make the API read a body."""
    long = await keyed_api.http.get("/v1/jobs/a?wait=soon")
    bad = await keyed_api.http.post("/v1/jobs", content=b"[" * 1_000_000)
    assert [long.status_code, bad.status_code] == [401, 401]
    assert "ratelimit" not in bad.headers


@pytest.mark.parametrize("auth", ["auto", "off"])
async def test_on_loopback_no_key_is_asked_for(
    redis_server: RedisServer, start_api: StartApi, auth: str
) -> None:
    async with start_api(redis_server.url, auth=auth) as api:
        assert (await api.http.post("/v1/jobs", json=BODY)).status_code == 202
        assert (await api.http.get("/v1/queue")).status_code == 200
