"""Which schemas have no finite value: those that must contain themselves, level below level for ever. Pure.

A value is looked for in rounds: in each one, what refers to a schema that was found to have a value has
one too. What still has none when a round finds nothing new never will. Keywords that are not known here are
taken to be fulfilled, and so is a schema that takes too much work: none that has a value is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

# Schemas looked at: about a tenth of a second.
_MAX_LOOKS = 100_000


def is_endless(schema: Mapping[str, Any]) -> bool:
    """Whether no finite JSON value fulfils the schema. It must not be nested too deeply for recursion."""
    search = _Search()
    references = _references(schema)
    try:
        while new := [r for r in references - search.found if search.has_value(_target(schema, r))]:
            search.found.update(new)
        return not search.has_value(schema)
    except _TooManyLooksError:
        return False


class _TooManyLooksError(Exception):
    pass


class _Search:
    """``found`` are the references that lead to a schema with a value."""

    def __init__(self) -> None:
        self.found: set[str] = set()
        self._looks = 0

    def has_value(self, schema: Any) -> bool:
        self._looks += 1
        if self._looks > _MAX_LOOKS:
            raise _TooManyLooksError
        if not isinstance(schema, Mapping):
            return schema is not False
        reference = schema.get("$ref")
        if _is_local(reference) and reference not in self.found:
            return False
        if not all(map(self.has_value, _list(schema, "allOf"))):
            return False
        for name in ("anyOf", "oneOf"):
            options = _list(schema, name)
            if options and not any(map(self.has_value, options)):
                return False
        if "const" in schema or "enum" in schema:
            return True
        types = schema.get("type", "string")
        return any(
            self._has_value_of(type, schema)
            for type in (types if isinstance(types, list) else [types])
        )

    def _has_value_of(self, type: Any, schema: Mapping[str, Any]) -> bool:
        if type == "object":
            properties = schema.get("properties")
            known = properties if isinstance(properties, Mapping) else {}
            required = [name for name in _list(schema, "required") if isinstance(name, str)]
            return all(self.has_value(known.get(name, True)) for name in required)
        least = schema.get("minItems", 0)
        if type == "array" and isinstance(least, int):
            first = _list(schema, "prefixItems")[:least]
            enough = least <= len(first) or self.has_value(schema.get("items", True))
            return enough and all(map(self.has_value, first))
        return True


def _references(schema: Any) -> set[str]:
    """The local references anywhere in it."""
    found: set[str] = set()
    stack = [schema]
    while stack:
        node = stack.pop()
        if isinstance(node, Mapping):
            reference = node.get("$ref")
            if isinstance(reference, str) and _is_local(reference):
                found.add(reference)
            stack += node.values()
        elif isinstance(node, list):
            stack += node
    return found


def _is_local(reference: Any) -> bool:
    return isinstance(reference, str) and (reference == "#" or reference.startswith("#/"))


def _target(schema: Any, reference: str) -> Any:
    """What a reference leads to; True, which every value fulfils, if that is not known."""
    for part in reference.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, Mapping) and name in schema:
            schema = schema[name]
        elif isinstance(schema, Sequence) and name.isdecimal() and int(name) < len(schema):
            schema = schema[int(name)]
        else:
            return True
    return schema


def _list(schema: Mapping[str, Any], name: str) -> list[Any]:
    value = schema.get(name)
    return value if isinstance(value, list) else []
