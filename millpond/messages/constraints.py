"""What a generated text must look like: JSON by a schema, one of some choices, a regular expression, a
grammar. Whether it can be compiled, `millpond.models.grammars` finds out."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import AfterValidator, ConfigDict, Field, StrictBool, model_validator
from pydantic_core import PydanticCustomError

from millpond.messages.fields import CHECKED, Frozen

# A schema of this size compiles within a second.
MAX_CONSTRAINT_BYTES = 65_536
MAX_CHOICE_TEXTS = 1_000

ConstraintKind = Literal["json_object", "json_schema", "choice", "regex", "grammar"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """``field`` is where the request has it. ``text`` is a JSON Schema, a JSON list of choices, a regular
    expression or a grammar."""

    kind: ConstraintKind
    field: str
    text: str


def _check_schema(schema: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(orjson.dumps(schema))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"cannot be written as JSON: {error}") from None
    _check_size(size)
    return schema


def _check_choices(choices: list[str]) -> list[str]:
    _check_size(len(orjson.dumps(choices)))
    return choices


def _check_text(text: str) -> str:
    _check_size(len(text.encode()))
    return text


def _check_size(size: int) -> None:
    if size > MAX_CONSTRAINT_BYTES:
        raise PydanticCustomError(
            "too_large",
            "has {size} bytes, the limit is {max_length}",
            {"size": size, "max_length": MAX_CONSTRAINT_BYTES},
        )


# Lengths in the annotations are characters; the checks behind them count bytes.
ConstraintText = Annotated[
    str,
    Field(min_length=1, max_length=MAX_CONSTRAINT_BYTES),
    CHECKED,
    AfterValidator(_check_text),
]
Choices = Annotated[
    list[Annotated[str, Field(min_length=1), CHECKED]],
    Field(min_length=1, max_length=MAX_CHOICE_TEXTS),
    AfterValidator(_check_choices),
]


class NamedSchema(Frozen):
    """A JSON Schema in OpenAI's wrapping. It is always kept to, so ``strict`` changes nothing."""

    model_config = ConfigDict(serialize_by_alias=True)

    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: Annotated[str, Field(max_length=1_024), CHECKED] | None = None
    schema_: Annotated[dict[str, Any], AfterValidator(_check_schema)] = Field(alias="schema")
    strict: StrictBool | None = None


class ResponseFormat(Frozen):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema must be given with the type json_schema, and only then")
        return self

    @property
    def constraint(self) -> Constraint | None:
        if self.type == "text":
            return None
        if self.json_schema is None:
            return Constraint("json_object", "response_format", '{"type":"object"}')
        text = orjson.dumps(self.json_schema.schema_).decode()
        return Constraint("json_schema", "response_format", text)
