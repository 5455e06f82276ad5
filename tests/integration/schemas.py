"""Schemas of JSON Schema's own test suite, one by one and put together at random."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator, Draft201909Validator, Draft202012Validator
from jsonschema.protocols import Validator

from millpond.errors import InvalidRequestError
from millpond.messages.constraints import Constraint
from millpond.models.grammars import Grammar, GrammarCompiler

SUITE = Path(__file__).with_name("json_schema_suite.json")
DRAFTS: dict[str, type[Validator]] = {
    "draft2020-12": Draft202012Validator,
    "draft2019-09": Draft201909Validator,
    "draft7": Draft7Validator,
}
# Names in a schema that mean something else inside another one.
_ROOTED = ('"$ref"', '"$id"', '"$anchor"', '"$dynamicRef"', '"$recursiveRef"')


@dataclass(frozen=True, slots=True)
class Compiled:
    grammar: Grammar
    validator: Validator


def compiled(schema: dict[str, Any], draft: str, compiler: GrammarCompiler) -> Compiled | None:
    """None if it is refused."""
    named = {"$schema": DRAFTS[draft].META_SCHEMA["$schema"], **schema}
    constraint = Constraint("json_schema", "response_format", json.dumps(named))
    try:
        return Compiled(compiler.compile(constraint), DRAFTS[draft](named))
    except InvalidRequestError:
        return None


def random_schemas(compiler: GrammarCompiler, count: int, seed: int) -> list[Compiled]:
    """As many that compile, in random order: those of the suite, then objects and lists of them."""
    rng = random.Random(seed)
    single = [(s, draft) for draft in DRAFTS for s in json.loads(SUITE.read_text())[draft]]
    rng.shuffle(single)
    found: list[Compiled] = []
    for schema, draft in _endlessly(single, rng):
        if (one := compiled(schema, draft, compiler)) is not None:
            found.append(one)
        if len(found) == count:
            return found
    raise AssertionError


def _endlessly(
    single: list[tuple[dict[str, Any], str]], rng: random.Random
) -> Iterator[tuple[dict[str, Any], str]]:
    yield from single
    draft = "draft2020-12"
    parts = [
        schema
        for schema, origin in single
        if origin == draft and not any(name in json.dumps(schema) for name in _ROOTED)
    ]
    while True:
        names = [f"field {n}" for n in range(rng.randint(1, 4))]
        properties = {name: rng.choice(parts) for name in names}
        schema = {"type": "object", "properties": properties, "required": names}
        yield {**schema, "additionalProperties": False}, draft
        yield {"type": "array", "items": rng.choice(parts), "minItems": 1, "maxItems": 3}, draft
