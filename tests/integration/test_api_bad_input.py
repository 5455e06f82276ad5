"""Whatever a client gets wrong: a 4xx that names the field and the limit, and nothing queued."""

import json
from dataclasses import dataclass
from typing import Any

from tests.integration.conftest import RunningApi

JSON = {"Content-Type": "application/json"}
SECRET = "swordfish"  # must not come back


@dataclass(frozen=True)
class Bad:
    """One bad request: what is sent, and what the answer must name."""

    name: str
    body: Any
    field: str
    limit: float | None = None
    status: int = 422
    code: str = "invalid_request"

    def __str__(self) -> str:
        return self.name


def prompt(**fields: Any) -> dict[str, Any]:
    return {"prompt": SECRET, **fields}


def by_schema(schema: dict[str, Any]) -> dict[str, Any]:
    wrapped = {"name": "a", "schema": schema}
    return prompt(response_format={"type": "json_schema", "json_schema": wrapped})


BODIES = [
    Bad("empty prompt", {"prompt": ""}, "prompt", 1),
    Bad("blank prompt", {"prompt": " \n\t"}, "prompt"),
    Bad("no prompt", {}, "prompt"),
    Bad("two inputs", prompt(messages=[{"role": "user", "content": SECRET}]), "prompt"),
    Bad("prompt of another type", {"prompt": [SECRET]}, "prompt"),
    Bad("null prompt", {"prompt": None}, "prompt"),
    Bad("unknown field", prompt(temprature=1), "temprature"),
    Bad("unknown field in a message", {"messages": [{"role": "user", "content": "a", "x": 1}]},
        "messages.0.x"),
    Bad("unknown role", {"messages": [{"role": "wizard", "content": SECRET}]}, "messages.0.role"),
    Bad("no messages", {"messages": []}, "messages", 1),
    Bad("max_tokens of 0", prompt(max_tokens=0), "max_tokens", 1),
    Bad("max_tokens of 10^9", prompt(max_tokens=10**9), "max_tokens", 131_072),
    Bad("max_tokens beyond any integer", b'{"prompt":"a","max_tokens":1' + b"0" * 400 + b"}",
        "max_tokens", 131_072),
    Bad("max_tokens above the model's", prompt(max_tokens=40_000), "max_tokens", 32_768),
    Bad("fractional max_tokens", prompt(max_tokens=1.5), "max_tokens"),
    Bad("min above max", prompt(max_tokens=2, min_tokens=3), "min_tokens"),
    Bad("NaN temperature", b'{"prompt":"a","temperature":NaN}', "temperature"),
    Bad("infinite temperature", b'{"prompt":"a","temperature":Infinity}', "temperature"),
    Bad("negative infinity", b'{"prompt":"a","temperature":-Infinity}', "temperature"),
    Bad("overflowing temperature", b'{"prompt":"a","temperature":1e999}', "temperature"),
    Bad("negative temperature", prompt(temperature=-0.1), "temperature", 0),
    Bad("hot temperature", prompt(temperature=11), "temperature", 10),
    Bad("top_p of 0", prompt(top_p=0), "top_p", 0),
    Bad("top_p above 1", prompt(top_p=1.1), "top_p", 1),
    Bad("no repetition penalty", prompt(repetition_penalty=0), "repetition_penalty", 0.1),
    Bad("a great penalty", prompt(presence_penalty=2.1), "presence_penalty", 2),
    Bad("a low penalty", prompt(frequency_penalty=-3), "frequency_penalty", -2),
    Bad("a great bias", prompt(logit_bias={"7": 101}), "logit_bias.7", 100),
    Bad("many biases", prompt(logit_bias={str(i): 1 for i in range(1025)}), "logit_bias", 1024),
    Bad("a bias outside the vocabulary", prompt(logit_bias={"7": 1, "300": 1}), "logit_bias.300",
        256),
    Bad("a bias for a word", prompt(logit_bias={"yes": 1}), "logit_bias.yes.[key]"),
    Bad("21 logprobs", prompt(logprobs=21), "logprobs", 20),
    Bad("logprobs of a long text", prompt(logprobs=20, max_tokens=2381), "logprobs", 50_000),
    Bad("a schema of 1 MB", by_schema({"enum": ["a" * 1_000_000]}),
        "response_format.json_schema.schema", 65_536),
    Bad("an endless recursion", by_schema({"type": "array", "minItems": 1, "items": {"$ref": "#"}}),
        "response_format"),
    Bad("a schema with what is not supported", by_schema({"uniqueItems": True}), "response_format"),
    Bad("a schema without a name", prompt(response_format={"type": "json_schema",
        "json_schema": {"schema": {}}}), "response_format.json_schema.name"),
    Bad("a regular expression that is none", prompt(guided_regex=f"({SECRET}"), "guided_regex"),
    Bad("a grammar that is none", prompt(guided_grammar=f"{SECRET}: {SECRET}"), "guided_grammar"),
    Bad("many choices", prompt(guided_choice=["a"] * 1001), "guided_choice", 1000),
    Bad("two constraints", prompt(guided_choice=["a"], guided_regex="a"), "guided_regex"),
    Bad("a vote of one", prompt(vote="exact"), "n", 2),
    Bad("a vote without its pattern", prompt(vote="regex", n=2), "vote_pattern"),
    Bad("a pattern that is none", prompt(vote="regex", n=2, vote_pattern=f"({SECRET}"), "vote_pattern"),
    Bad("a large pattern", prompt(vote="regex", n=2, vote_pattern=r"(\pL{300})"), "vote_pattern",
        524_288),
    Bad("a long pattern", prompt(vote="regex", n=2, vote_pattern="(a)" * 334), "vote_pattern", 1000),
    Bad("negative seed", prompt(seed=-1), "seed", 0),
    Bad("10,000 stop strings", prompt(stop=["a"] * 10_000), "stop", 16),
    Bad("empty stop string", prompt(stop=[""]), "stop.0", 1),
    Bad("long stop string", prompt(stop="a" * 257), "stop.0", 256),
    Bad("ids outside the vocabulary", {"token_ids": [1, 257]}, "token_ids.1", 256),
    Bad("negative ids", {"token_ids": [-1]}, "token_ids.0", 0),
    Bad("ids beyond 32 bits", {"token_ids": [2**40]}, "token_ids.0", 2**31),
    Bad("too many ids", {"token_ids": [1] * 131_073}, "token_ids", 131_072),
    Bad("no ids", {"token_ids": []}, "token_ids", 1),
    Bad("many wrong ids", {"token_ids": ["a"] * 100_000}, "token_ids.0"),
    Bad("stop ids outside the vocabulary", prompt(stop_token_ids=[300]), "stop_token_ids.0", 256),
    Bad("NUL", {"prompt": "a\0b"}, "prompt"),
    Bad("NUL in a message", {"messages": [{"role": "user", "content": "\0"}]},
        "messages.0.content"),
    Bad("lone surrogate", b'{"prompt":"a\\ud800b"}', "prompt"),
    Bad("lone low surrogate", b'{"messages":[{"role":"user","content":"\\uDC00"}]}',
        "messages.0.content"),
    Bad("lone surrogate in a key", b'{"prompt":"a","metadata":{"\\ud800":"a"}}', "metadata"),
    Bad("long prompt in tokens", {"prompt": "a" * 40_000}, "prompt", 32_768,
        code="prompt_too_long"),
    Bad("long prompt in characters", {"prompt": "a" * 1_000_001}, "prompt", 1_000_000),
    Bad("another model", prompt(model="gpt-9"), "model", code="unknown_model"),
    Bad("unknown priority", prompt(priority="urgent"), "priority"),
    Bad("unknown truncation", prompt(truncate="most"), "truncate"),
    Bad("deadline of 0", prompt(deadline_s=0), "deadline_s", 0),
    Bad("deadline in a year", prompt(deadline_s=3e7), "deadline_s", 604_800),
    Bad("much metadata", prompt(metadata={str(i): "a" for i in range(17)}), "metadata", 16),
    Bad("long metadata", prompt(metadata={"a": "b" * 513}), "metadata.a", 512),
    Bad("metadata that is no text", prompt(metadata={"a": 1}), "metadata.a"),
    Bad("raw messages", {"messages": [{"role": "user", "content": "a"}], "raw": True}, "raw"),
    Bad("a list", [SECRET], "body"),
    Bad("null", None, "body"),
    Bad("10,000 unknown fields", {f"field{i}": 1 for i in range(10_000)}, "body", 5_000),
    Bad("empty body", b"", "body", status=400, code="invalid_json"),
    Bad("cut JSON", b'{"prompt":"' + SECRET.encode(), "body", status=400, code="invalid_json"),
    Bad("bad UTF-8", b'{"prompt":"\xff\xfe"}', "body", status=400, code="invalid_json"),
    Bad("UTF-16", '{"prompt":"a"}'.encode("utf-16"), "body", status=400, code="invalid_json"),
    Bad("deep nesting", b'{"prompt":' + b"[" * 200_000, "body", status=400, code="invalid_json"),
    Bad("deep nesting and a surrogate", b'["\\ud800",' + b"[" * 200_000, "body", status=400,
        code="invalid_json"),
    Bad("a number of 5,000 digits", b'{"prompt":"a","seed":1' + b"0" * 5_000 + b"}", "body",
        status=400, code="invalid_json"),
    Bad("5 MB body", {"prompt": "a" * 5_000_000}, "body", 2 * 1024 * 1024, status=413,
        code="body_too_large"),
]  # fmt: skip


def encoded(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


async def test_each_bad_body_is_refused_by_name_and_nothing_is_queued(api: RunningApi) -> None:
    for bad in BODIES:
        answer = await api.http.post("/v1/jobs", content=encoded(bad.body), headers=JSON)

        body = answer.json()
        assert answer.headers["content-type"] == "application/problem+json", bad
        assert (answer.status_code, body["code"]) == (bad.status, bad.code), (bad, body)
        assert body["status"] == bad.status
        assert body["type"].endswith(bad.code)
        assert body["errors"][0]["field"] == bad.field, (bad, body)
        assert body["errors"][0].get("limit") == bad.limit, (bad, body)
        assert body["errors"][0]["message"]
        assert SECRET not in answer.text, bad
        assert len(answer.content) < 10_000, bad
        assert await api.queue.depth() == 0, bad


async def test_an_unknown_field_may_have_any_name_in_a_bulk(api: RunningApi) -> None:
    content = b'{"jobs":[{"prompt":"a","\\udfff":1},{"prompt":"b"}]}'
    answer = await api.http.post("/v1/jobs/bulk", content=content, headers=JSON)

    refused, accepted = answer.json()["jobs"]
    assert (refused["status_code"], accepted["status_code"]) == (422, 202)
    assert refused["problem"]["errors"][0]["field"] == "body"


async def test_each_bad_body_spares_its_neighbours_in_a_bulk(api: RunningApi) -> None:
    bodies = [bad for bad in BODIES if bad.status == 422 and "ids" not in bad.name]
    bodies = [bad for bad in bodies if "MB" not in bad.name]  # the bulk would be too large
    parts = [b'{"prompt":"good"}', *(encoded(bad.body) for bad in bodies), b'{"prompt":"too"}']

    content = b'{"jobs":[' + b",".join(parts) + b"]}"
    answer = await api.http.post("/v1/jobs/bulk", content=content, headers=JSON)

    items = answer.json()["jobs"]
    assert answer.status_code == 200
    assert [item["index"] for item in items] == list(range(len(parts)))
    assert (items[0]["status_code"], items[-1]["status_code"]) == (202, 202)
    for bad, item in zip(bodies, items[1:-1], strict=True):
        assert (item["status_code"], item["problem"]["code"]) == (422, bad.code), (bad, item)
    assert SECRET not in answer.text
    assert await api.queue.depth() == 2


async def test_a_body_that_grows_past_the_limit_is_cut_off(api: RunningApi) -> None:
    async def endless() -> Any:
        for _ in range(50):
            yield b" " * 100_000

    answer = await api.http.post("/v1/jobs", content=endless(), headers=JSON)

    body = answer.json()
    assert (answer.status_code, body["code"]) == (413, "body_too_large")
    assert body["errors"] == [
        {"field": "body", "message": "is longer than 2097152 bytes", "limit": 2_097_152}
    ]
    assert (await api.http.get("/healthz")).status_code == 200


async def test_another_content_type_is_refused(api: RunningApi) -> None:
    for media_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        headers = {"Content-Type": media_type}
        answer = await api.http.post("/v1/jobs", content=b'{"prompt":"a"}', headers=headers)

        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
        assert answer.json()["errors"][0]["field"] == "Content-Type"
    assert await api.queue.depth() == 0


async def test_a_bad_idempotency_key_is_refused(api: RunningApi) -> None:
    bodies = {"/v1/jobs": b'{"prompt":"a"}', "/v1/jobs/bulk": b'{"jobs":[{"prompt":"a"}]}'}
    for key in ("", "with space", "a" * 256, "tab\there"):
        for path, body in bodies.items():
            headers = {**JSON, "Idempotency-Key": key}
            answer = await api.http.post(path, content=body, headers=headers)

            [fault] = answer.json()["errors"]
            assert answer.status_code == 422
            assert (fault["field"], fault["limit"]) == ("Idempotency-Key", 255)
    assert await api.queue.depth() == 0


async def test_an_unknown_or_malformed_id_is_not_found(api: RunningApi) -> None:
    long = "a" * 65
    odd = ("unknown", long, "%00", "..%2F..", "a%0Ab", "%F0%9F%98%80", "a b", "%ff", "-a", "*")
    for id in odd:
        answers = [
            await api.http.get(f"/v1/jobs/{id}"),
            await api.http.get(f"/v1/jobs/{id}?wait=1"),
            await api.http.get(f"/v1/jobs/{id}/events"),
            await api.http.delete(f"/v1/jobs/{id}"),
        ]
        for answer in answers:
            assert answer.status_code == 404
            assert answer.json()["code"] in ("job_not_found", "not_found")


async def test_a_bad_wait_is_refused(api: RunningApi) -> None:
    id = await api.submit()
    bad = {"61": 60, "-1": 0, "nan": None, "inf": None, "1e999": None, "soon": None, "": None}
    for wait, limit in bad.items():
        answer = await api.http.get(f"/v1/jobs/{id}?wait={wait}")

        [fault] = answer.json()["errors"]
        assert answer.status_code == 422
        assert (fault["field"], fault.get("limit")) == ("wait", limit)


async def test_a_bad_place_in_the_events_is_refused(api: RunningApi) -> None:
    id = await api.submit()
    for place in ("abc", "-1", "1-", "1-2-3", "$", "(5", "٣", "9" * 21, "1-18446744073709551616"):
        headers = {"Last-Event-ID": place.encode()}
        by_header = await api.http.get(f"/v1/jobs/{id}/events", headers=headers)
        by_query = await api.http.get(f"/v1/jobs/{id}/events", params={"after": place})

        assert (by_header.status_code, by_query.status_code) == (422, 422)
        assert by_header.json()["errors"][0]["field"] == "Last-Event-ID"
        assert by_query.json()["errors"][0]["field"] == "after"


BAD_BULKS: list[tuple[Any, str, float | None]] = [
    ({}, "jobs", None),
    ({"jobs": []}, "jobs", 1),
    ({"jobs": [{"prompt": "a"}] * 1_001}, "jobs", 1_000),
    ({"jobs": {}}, "jobs", None),
    ({"jobs": [{"prompt": "a"}], "extra": 1}, "extra", None),
    ([], "body", None),
]


async def test_a_bad_bulk_is_refused_whole(api: RunningApi) -> None:
    for body, field, limit in BAD_BULKS:
        answer = await api.http.post("/v1/jobs/bulk", json=body)

        [fault] = answer.json()["errors"]
        assert answer.status_code == 422
        assert (fault["field"], fault.get("limit")) == (field, limit)
    assert await api.queue.depth() == 0


async def test_wrong_paths_and_methods_are_problems_too(api: RunningApi) -> None:
    missing = await api.http.get("/v1/nothing")
    slash = await api.http.post("/v1/jobs/", json={"prompt": "a"})
    method = await api.http.put("/v1/jobs", json={"prompt": "a"})

    assert [a.status_code for a in (missing, slash, method)] == [404, 404, 405]
    assert [a.json()["code"] for a in (missing, method)] == ["not_found", "method_not_allowed"]
    assert method.headers["allow"] == "GET, HEAD, POST"
    for answer in (missing, slash, method):
        assert answer.headers["content-type"] == "application/problem+json"
