"""How long prompts and answers are to be, in tokens. Pure."""

import math
import random
from dataclasses import dataclass
from typing import Protocol

from millpond.errors import InvalidRequestError

MAX_TOKENS = 1_000_000


class Lengths(Protocol):
    """A distribution of lengths; its text is what the flag takes."""

    def draw(self, chance: random.Random) -> int: ...


@dataclass(frozen=True, slots=True)
class Fixed:
    tokens: int

    def draw(self, chance: random.Random) -> int:
        return self.tokens

    def __str__(self) -> str:
        return f"{self.tokens}"


@dataclass(frozen=True, slots=True)
class LogNormal:
    """``sigma`` is the standard deviation of the logarithm. Longer draws than ``max_tokens`` are cut."""

    median_tokens: int
    sigma: float
    max_tokens: int

    def draw(self, chance: random.Random) -> int:
        drawn = chance.lognormvariate(math.log(self.median_tokens), self.sigma)
        return max(1, min(self.max_tokens, round(drawn)))

    def __str__(self) -> str:
        return f"lognormal:{self.median_tokens}:{self.sigma:g}:{self.max_tokens}"


def parse_lengths(field: str, text: str) -> Lengths:
    """``128``, or ``lognormal:MEDIAN:SIGMA:MAX``. Raises InvalidRequestError naming ``field``."""
    kind, _, rest = text.partition(":")
    if kind != "lognormal":
        return Fixed(_tokens(field, text))
    parts = rest.split(":")
    if len(parts) != 3:
        raise InvalidRequestError(field, f"{text!r} is not of the form lognormal:MEDIAN:SIGMA:MAX")
    median_tokens, max_tokens = _tokens(field, parts[0]), _tokens(field, parts[2])
    sigma = _number(field, parts[1])
    if not 0 < sigma <= 3:
        raise InvalidRequestError(field, f"SIGMA is {sigma:g}; it must be above 0, at most 3")
    if max_tokens < median_tokens:
        raise InvalidRequestError(field, f"MAX, {max_tokens}, is less than MEDIAN, {median_tokens}")
    return LogNormal(median_tokens, sigma, max_tokens)


def _tokens(field: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_TOKENS:
        raise InvalidRequestError(
            field, f"{text!r} is no number of tokens from 1 to {MAX_TOKENS:,}", limit=MAX_TOKENS
        )
    return int(text)


def _number(field: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidRequestError(field, f"{text!r} is no number") from None
