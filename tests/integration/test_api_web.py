"""What browsers, proxies and other people's clients meet: hosts, origins, HEAD, errors that they can show."""

from typing import Any

import httpx
import openai
import pytest

from millpond.access.api_keys import Scope
from millpond.local.server import RedisServer
from tests.integration.conftest import RunningApi, StartApi, make_key

ORIGIN = "https://app.example.org"


async def status_for(api: RunningApi, host: str) -> int:
    answer = await api.http.get("/v1/models", headers={"Host": host})
    if answer.status_code != 200:
        assert answer.json()["code"] == "host_not_allowed"
        assert "allowed_hosts" in answer.json()["detail"]
    return answer.status_code


async def test_without_keys_only_loopbacks_names_are_answered(api: RunningApi) -> None:
    """A page whose name is made to point at 127.0.0.1 must not read or submit anything."""
    good = ("127.0.0.1:8000", "127.0.0.1", "localhost:1", "LOCALHOST.", "a.localhost", "[::1]:80")
    bad = (
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:80",
        "10.0.0.1",
        "[",
        "",
    )
    assert {host: await status_for(api, host) for host in good} == dict.fromkeys(good, 200)
    assert {host: await status_for(api, host) for host in bad} == dict.fromkeys(bad, 421)
    refused = await api.http.post(
        "/v1/jobs", json={"prompt": "a"}, headers={"Host": "evil.example"}
    )
    assert refused.status_code == 421
    assert await api.queue.depth() == 0


async def test_other_names_are_a_setting(redis_server: RedisServer, start_api: StartApi) -> None:
    async with start_api(redis_server.url, allowed_hosts="queue.lan, 10.0.0.1") as api:
        for host, status in {
            "queue.lan:80": 200,
            "10.0.0.1": 200,
            "localhost": 200,
            "lan": 421,
        }.items():
            assert await status_for(api, host) == status, host
    async with start_api(redis_server.url, auth="on", allowed_hosts="lan,127.0.0.1") as api:
        for host, status in {"lan": 200, "localhost": 421}.items():
            answer = await api.http.get("/healthz", headers={"Host": host})
            assert answer.status_code == status, host


async def test_with_keys_any_name_will_do(keyed_api: RunningApi) -> None:
    answer = await keyed_api.http.get("/healthz", headers={"Host": "anything.example"})
    assert answer.status_code == 200


async def test_head_is_get_without_its_body(api: RunningApi) -> None:
    id = await api.submit()
    for path in ("/healthz", "/v1/models", "/v1/queue", f"/v1/jobs/{id}", "/v1/jobs/none", "/none"):
        get, head = await api.http.get(path), await api.http.head(path)
        assert (head.status_code, head.content) == (get.status_code, b""), path
        assert head.headers["content-type"] == get.headers["content-type"]
    # A stream's headers, and then its end.
    stream = await api.http.head(f"/v1/jobs/{id}/events")
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert (await api.http.head("/v1/completions")).status_code == 405
    allowed = (await api.http.put(f"/v1/jobs/{id}")).headers["allow"]
    assert allowed == "DELETE, GET, HEAD"


async def test_pages_of_other_origins_are_a_setting(
    redis_server: RedisServer, start_api: StartApi
) -> None:
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, idempotency-key",
    }

    async def allowed(api: RunningApi, origin: str) -> set[str | None]:
        headers = {**asked, "Origin": origin}
        answers = [
            await api.http.options("/v1/jobs", headers=headers),
            await api.http.post("/v1/jobs", json={"prompt": "a"}, headers={"Origin": origin}),
        ]
        return {answer.headers.get("access-control-allow-origin") for answer in answers}

    async with start_api(redis_server.url) as api:
        assert await allowed(api, ORIGIN) == {None}
    async with start_api(redis_server.url, cors_origins=[ORIGIN]) as api:
        assert await allowed(api, ORIGIN) == {ORIGIN}
        assert await allowed(api, "https://evil.example") == {None}
        preflight = await api.http.options("/v1/jobs", headers=asked)
        assert preflight.status_code == 200
        seen = await api.http.get("/v1/jobs/none", headers={"Origin": ORIGIN})
        assert "Retry-After" in seen.headers["access-control-expose-headers"]


@pytest.mark.parametrize(
    ("path", "kind", "param"),
    [
        ("/v1/models", "authentication_error", None),
        ("/v1/jobs/none", "not_found_error", None),
        ("/v1/jobs/none?wait=x", "invalid_request_error", "wait"),
        ("/v1/nothing", "not_found_error", None),
    ],
)
async def test_every_error_is_one_of_openais_too(
    keyed_api: RunningApi, path: str, kind: str, param: str | None
) -> None:
    headers = {} if path == "/v1/models" else await make_key(keyed_api)
    answer = await keyed_api.http.get(path, headers=headers)
    problem: dict[str, Any] = answer.json()
    assert problem["error"] == {
        "message": problem["detail"],
        "type": kind,
        "param": param,
        "code": problem["code"],
    }


async def test_openais_client_shows_the_reason(keyed_api: RunningApi) -> None:
    key = (await make_key(keyed_api, scopes=[Scope.SUBMIT]))["Authorization"].removeprefix(
        "Bearer "
    )
    client = openai.AsyncOpenAI(
        base_url=f"{keyed_api.http.base_url}/v1", api_key=key, max_retries=0
    )
    async with client:
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await client.models.list()
    assert caught.value.code == "forbidden"
    assert "this key lacks the scope 'read', which this route needs" in str(caught.value)


async def test_the_scope_is_named_in_plain_words(keyed_api: RunningApi) -> None:
    answer = await keyed_api.http.get("/v1/queue", headers=await make_key(keyed_api))
    assert answer.json()["detail"] == "this key lacks the scope 'admin', which this route needs"


async def test_lengths_are_told_in_characters_and_items(api: RunningApi) -> None:
    async def message(**fields: Any) -> str:
        answer = await api.http.post("/v1/jobs", json={"prompt": "a", **fields})
        assert answer.status_code == 422
        return str(answer.json()["errors"][0]["message"])

    assert await message(adapter="a" * 65) == "String should have at most 64 characters"
    assert await message(stop=["a" * 257]) == "String should have at most 256 characters"
    assert await message(stop=["a"] * 17) == "List should have at most 16 items, not 17"


async def test_a_message_may_come_in_text_parts(api: RunningApi) -> None:
    def body(content: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": content}], "max_tokens": 1}

    async def post(content: Any) -> httpx.Response:
        return await api.http.post(
            "/v1/jobs", json=body(content), headers={"Idempotency-Key": "one"}
        )

    parts = [{"type": "text", "text": "Name "}, {"type": "text", "text": "a river."}]
    first, again = await post("Name a river."), await post(parts)
    assert (first.status_code, again.status_code) == (202, 202)
    # The same conversation, and so the same request.
    assert again.headers["idempotency-replayed"] == "true"
    bad = {
        "an image": [*parts, {"type": "image_url", "image_url": {"url": "x"}}],
        "no text": [{"type": "text"}],
        "a number": [{"type": "text", "text": 1}],
        "more": [{"type": "text", "text": "a", "cache": True}],
        "half a character": None,
        "bare": ["a"],
    }
    for name, content in bad.items():
        answer = await post(content)
        assert answer.status_code == 422, name
        assert answer.json()["errors"][0]["field"].startswith("messages.0.content"), name


async def test_the_events_of_no_job_are_a_problem(api: RunningApi) -> None:
    id = await api.submit(stream=False)
    await api.complete(await api.claim())
    await api.services.redis.delete(api.queue.keys.job(id), api.queue.keys.result(id))
    for gone in (id, "unknown", "%00", "a" * 200):
        answer = await api.http.get(f"/v1/jobs/{gone}/events")
        assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found"), gone
        assert answer.headers["content-type"] == "application/problem+json"
