"""The OpenAPI file: whole, consistent with itself, and with an example for every case."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError
from referencing import Registry, Resource

from api.answers.problems import PROBLEM_MEDIA_TYPE
from api.app import create_app
from millpond.messages import JobRequest
from millpond.settings import Settings

ROOT = "urn:openapi"
PATHS = {
    "/v1/jobs": {"get", "post"},
    "/v1/dead": {"get"},
    "/v1/dead/{job_id}": {"get"},
    "/v1/dead/{job_id}/retry": {"post"},
    "/v1/jobs/bulk": {"post"},
    "/v1/jobs/{job_id}": {"get", "delete"},
    "/v1/jobs/{job_id}/events": {"get"},
    "/v1/chat/completions": {"post"},
    "/v1/completions": {"post"},
    "/v1/files": {"get", "post"},
    "/v1/files/{file_id}": {"get", "delete"},
    "/v1/files/{file_id}/content": {"get"},
    "/v1/batches": {"get", "post"},
    "/v1/batches/{batch_id}": {"get"},
    "/v1/batches/{batch_id}/cancel": {"post"},
    "/v1/queue": {"get"},
    "/v1/queue/events": {"get"},
    "/v1/models": {"get"},
    "/healthz": {"get"},
    "/readyz": {"get"},
    "/metrics": {"get"},
}

# Their errors are in OpenAI's shape.
OPENAI_ROUTES = (
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/batches",
    "GET /v1/batches",
    "GET /v1/batches/{batch_id}",
    "POST /v1/batches/{batch_id}/cancel",
    "POST /v1/files",
    "GET /v1/files",
    "GET /v1/files/{file_id}",
    "GET /v1/files/{file_id}/content",
    "DELETE /v1/files/{file_id}",
)


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return create_app(Settings(engine="simulated", cache_dir=Path("unused"))).openapi()


def operations(described: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def validator(described: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    contents = {"$schema": "https://json-schema.org/draft/2020-12/schema", **described}
    registry = Registry().with_resource(ROOT, Resource.from_contents(contents))
    absolute = {"$ref": f"{ROOT}{schema['$ref']}"} if "$ref" in schema else schema
    return Draft202012Validator(absolute, registry=registry)


def test_every_route_is_there_and_no_other(described: dict[str, Any]) -> None:
    found = {path: set(methods) for path, methods in described["paths"].items()}
    assert found == PATHS
    assert (described["info"]["title"], described["openapi"][:3]) == ("Millpond", "3.1")


def test_every_reference_leads_somewhere(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]
    for reference in references(described):
        assert reference.startswith("#/components/schemas/"), reference
        assert reference.rpartition("/")[2] in schemas, reference


def test_every_schema_is_a_schema(described: dict[str, Any]) -> None:
    for schema in described["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_every_example_keeps_to_its_schema(described: dict[str, Any]) -> None:
    checked = 0
    for _, operation in operations(described):
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for content in (c for body in bodies for c in body.get("content", {}).values()):
            for example in content.get("examples", {}).values():
                validator(described, content["schema"]).validate(example["value"])
                checked += 1
    assert checked > 30


def test_every_success_has_an_example(described: dict[str, Any]) -> None:
    for name, operation in operations(described):
        for status, answer in operation["responses"].items():
            if int(status) < 300:
                for content in answer["content"].values():
                    assert "examples" in content or "example" in content, (name, status)


def test_every_error_is_a_problem_with_an_example(described: dict[str, Any]) -> None:
    for name, operation in operations(described):
        assert operation["summary"], name
        for status, answer in operation["responses"].items():
            if int(status) >= 400 and name != "GET /readyz":
                shape = "application/json" if name in OPENAI_ROUTES else PROBLEM_MEDIA_TYPE
                assert list(answer["content"]) == [shape], (name, status)
                assert answer["content"][shape]["examples"], (name, status)
        if "/v1/" in name:
            assert "503" in operation["responses"], name


@pytest.mark.parametrize(
    ("body", "good"),
    [
        ({}, False),
        ({"prompt": "a"}, True),
        ({"prompt": None}, False),
        ({"prompt": "a", "messages": None}, True),
        ({"prompt": "a", "token_ids": [1]}, False),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, True),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, False),
        ({"token_ids": [1]}, True),
    ],
)
def test_the_schema_says_what_is_required(
    described: dict[str, Any], body: dict[str, Any], good: bool
) -> None:
    schema = {"$ref": "#/components/schemas/JobRequest"}
    assert validator(described, schema).is_valid(body) is good
    try:
        JobRequest.model_validate(body)
    except ValidationError:
        assert not good
    else:
        assert good
