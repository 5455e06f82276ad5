"""Which settings are varied, and the variants that follow. Pure."""

import itertools
from collections.abc import Sequence

from millpond.errors import InvalidRequestError

MAX_VARIANTS = 64


def parse_varied(field: str, texts: Sequence[str]) -> list[dict[str, str]]:
    """``slots=1,16`` and the like: every combination of the values, the last one named changing fastest.

    One empty variant if nothing is varied. Raises InvalidRequestError naming ``field``.
    """
    axes: dict[str, list[str]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        axes[name.strip()] = found = [value.strip() for value in values.split(",")]
        if not equals or "" in found:
            raise InvalidRequestError(field, f"{text!r} is not of the form NAME=VALUE,VALUE")
        if len(set(found)) < len(found):
            raise InvalidRequestError(field, f"{text!r} has a value twice")
    variants = [
        dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    ]
    if len(variants) > MAX_VARIANTS:
        raise InvalidRequestError(
            field,
            f"makes {len(variants)} variants; at most {MAX_VARIANTS}",
            limit=MAX_VARIANTS,
        )
    return variants


def variant_name(variant: dict[str, str]) -> str:
    """What tells it from the others, in the report."""
    return ", ".join(f"{name}={value}" for name, value in variant.items())
