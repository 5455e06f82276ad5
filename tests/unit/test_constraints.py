"""What a request may ask of its text, and which constraints can be compiled."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from millpond.errors import InvalidRequestError
from millpond.messages import JobRequest
from millpond.messages.constraints import MAX_CONSTRAINT_BYTES, Constraint
from millpond.models.endless_schema import is_endless
from millpond.models.grammars import Grammar, GrammarCompiler
from millpond.models.tokenization import ByteTokenizer
from worker.engines.scheduling.matcher import Matcher

COMPILER = GrammarCompiler(ByteTokenizer())


def by_schema(schema: dict[str, Any]) -> dict[str, Any]:
    wrapped = {"name": "answer", "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": wrapped}}


def job(**fields: Any) -> JobRequest:
    return JobRequest.model_validate({"prompt": "hi", **fields})


def compiled(**fields: Any) -> Grammar:
    constraint = job(**fields).constraint
    assert constraint is not None
    return COMPILER.compile(constraint)


def allows(grammar: Grammar, text: str) -> bool:
    """Whether the whole text is one that may be generated."""
    matcher = Matcher(grammar, ByteTokenizer.vocab_size)
    for token_id in (*text.encode(), ByteTokenizer.EOS):
        matcher.compute()
        if not matcher.allows(token_id):
            return False
        matcher.accept(token_id)
    return True


def test_a_schemas_properties_keep_their_order_in_the_stored_body() -> None:
    """They are generated in that order, and the body's own keys are sorted."""
    request = job(**by_schema({"type": "object", "properties": {"why": {}, "answer": {}}}))
    read = JobRequest.from_json(request.to_json())
    assert read == request
    assert read.constraint == Constraint(
        "json_schema", "response_format", '{"type":"object","properties":{"why":{},"answer":{}}}'
    )


def test_plain_text_is_no_constraint_and_may_stand_beside_one() -> None:
    text = {"type": "text"}
    assert job(response_format=text).constraint is None
    assert job(response_format=text, min_tokens=3, ignore_eos=True).constraint is None
    beside = job(response_format=text, guided_regex="a").constraint
    assert beside == Constraint("regex", "guided_regex", "a")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "json_schema must be given"),
        ({"response_format": {"type": "text", "json_schema": {"name": "a", "schema": {}}}}, "only"),
        (by_schema({"a": "x" * MAX_CONSTRAINT_BYTES}), f"the limit is {MAX_CONSTRAINT_BYTES}"),
        (by_schema({"a": 2**70}), "cannot be written as JSON"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a"] * 1001}, "at most 1000"),
        ({"guided_choice": ["ä" * 40_000]}, f"the limit is {MAX_CONSTRAINT_BYTES}"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_grammar": "ä" * 40_000}, f"the limit is {MAX_CONSTRAINT_BYTES}"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_regex: cannot be combined"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos: cannot be combined"),
        ({"guided_regex": "a", "min_tokens": 1}, "min_tokens: cannot be combined"),
    ],
)
def test_what_is_refused_before_anything_is_compiled(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        job(**fields)


@pytest.mark.parametrize(
    ("fields", "good", "bad"),
    [
        (by_schema({"enum": ["x", 7]}), ['"x"', "7"], ["x", "8", ""]),
        (
            by_schema({"type": "object", "properties": {"a": {"type": "integer"}}}),
            ["{}", '{"a":1}', '{ "a" : 1 , "b": null}'],
            ['{"a":"1"}', "[]", '{"a":1', '{"a":1}}'],
        ),
        ({"response_format": {"type": "json_object"}}, ['{"a":[1]}'], ["[]", "3"]),
        ({"guided_choice": ["yes", 'n"o\n']}, ["yes", 'n"o\n'], ["ye", "yesyes", "no"]),
        ({"guided_regex": r"\d{2}(a|b)*"}, ["12", "12ab"], ["1", "12c"]),
        ({"guided_grammar": 'start: "a" start "b" | "c"'}, ["c", "aacbb"], ["ac", "b"]),
        ({"guided_grammar": 'root ::= "a" x\nx ::= [0-9]+'}, ["a12"], ["a", "a1b"]),
    ],
)
def test_every_kind_allows_what_it_should(
    fields: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    grammar = compiled(**fields)
    assert {text: allows(grammar, text) for text in (*good, *bad)} == {
        **dict.fromkeys(good, True),
        **dict.fromkeys(bad, False),
    }


def test_white_space_in_json_ends() -> None:
    """A small model might write nothing else."""
    grammar = compiled(response_format={"type": "json_object"})
    assert allows(grammar, "{" + " " * 20 + "}")
    assert not allows(grammar, "{" + " " * 21 + "}")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (by_schema({"not": {"type": "string"}}), '"not"'),
        (by_schema({"x-guidance": {"lenient": True}, "not": {}}), '"not"'),
        (by_schema({"enum": []}), "Unsatisfiable"),
        (by_schema({"$ref": "#"}), "recursion never ends"),
        (by_schema({"$ref": "http://127.0.0.1:1/x.json"}), "cannot be compiled"),
        (by_schema({"type": "string", "pattern": "(?=a)"}), "look-ahead"),
        (by_schema(json.loads('{"items":' * 150 + "{}" + "}" * 150)), "recursion limit"),
        ({"guided_regex": "(swordfish"}, "unclosed group"),
        ({"guided_grammar": 'start: "swordfish" | swordfish'}, "unknown name"),
        ({"guided_grammar": "%swordfish%"}, "GBNF"),
    ],
)
def test_what_cannot_be_compiled_is_refused_with_the_reason(
    fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        compiled(**fields)
    [field] = fields
    assert caught.value.field == field
    assert "swordfish" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


NODE = {"type": "object", "required": ["next"], "properties": {"next": {"$ref": "#/$defs/node"}}}


@pytest.mark.parametrize(
    ("schema", "endless"),
    [
        ({"$ref": "#"}, True),
        ({"$defs": {"node": NODE}, "$ref": "#/$defs/node"}, True),
        ({"$defs": {"node": {**NODE, "required": []}}, "$ref": "#/$defs/node"}, False),
        ({"type": "array", "minItems": 1, "items": {"$ref": "#"}}, True),
        ({"type": "array", "minItems": 1, "prefixItems": [{"$ref": "#"}]}, True),
        ({"type": "array", "minItems": 1, "prefixItems": [{}], "items": {"$ref": "#"}}, False),
        ({"type": "array", "items": {"$ref": "#"}}, False),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, False),
        ({"anyOf": [{"$ref": "#"}, False]}, True),
        ({"allOf": [{"$ref": "#"}, {"type": "null"}]}, True),
        ({"type": ["array", "null"], "minItems": 1, "items": {"$ref": "#"}}, False),
        ({"minItems": 1, "items": {"$ref": "#"}}, False),
        ({"$defs": {"a/b": {"$ref": "#/$defs/c"}, "c": {}}, "$ref": "#/$defs/a~1b"}, False),
        ({"$ref": "#/nowhere"}, False),
        ({"$ref": "other.json"}, False),
    ],
)
def test_a_recursion_that_never_ends_is_found(schema: dict[str, Any], endless: bool) -> None:
    assert is_endless(schema) is endless


def test_a_schema_that_takes_too_much_work_is_given_the_benefit_of_the_doubt() -> None:
    chain = {
        f"{i}": {"type": "array", "minItems": 1, "items": {"$ref": f"#/$defs/{i + 1}"}}
        for i in range(1_000)
    }
    assert not is_endless({"$defs": chain, "$ref": "#/$defs/0"})


def test_a_constraint_that_becomes_too_complex_says_so_and_allows_nothing() -> None:
    matcher = Matcher(compiled(guided_regex="(a{1000}){1000}"), ByteTokenizer.vocab_size)
    while matcher.error is None:
        matcher.compute()
        assert not any(matcher.mask) or matcher.allows(ord("a"))
        matcher.accept(ord("a"))
    matcher.compute()
    assert not any(matcher.mask)
    assert "\n" not in matcher.error
