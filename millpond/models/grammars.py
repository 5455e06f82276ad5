"""Constraints compiled against a model's vocabulary, by llguidance: which tokens may come next.

The API compiles to refuse what cannot be, the worker to generate. Limits on the work are in the compiler's
own units, so that the same constraint is accepted everywhere.
"""

import json
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from millpond.errors import InvalidRequestError
from millpond.messages.constraints import Constraint
from millpond.models.endless_schema import is_endless
from millpond.models.tokenization import ByteTokenizer, Tokenizer

if TYPE_CHECKING:  # importing the library takes 20 MiB, which most processes never need
    from llguidance import LLMatcher, LLTokenizer

# At most about half a second for the costliest constraint. Errors without the compiler's inner state.
_LIMITS: Any = {
    "initial_lexer_fuel": 300_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
# What a schema itself must not change. Unbounded white space could go on for ever.
_JSON_OPTIONS: Any = {
    "lenient": False,
    "coerce_one_of": False,
    "whitespace_flexible": True,
    "whitespace_pattern": r"[ \n\r\t]{1,20}",
}
_MAX_CAUSE_CHARS = 200
_QUOTED = re.compile(r"""(["']).*\1""")


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled constraint. It is not to be advanced itself: each row takes a copy."""

    constraint: Constraint
    matcher: "LLMatcher"


class GrammarCompiler:
    """Safe to use from any thread. The first constraint prepares the vocabulary, which takes a while."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None

    def compile(self, constraint: Constraint) -> Grammar:
        """Raises InvalidRequestError, naming the field, if no text can be generated under it."""
        from llguidance import LLMatcher, LLParserLimits

        source = _source(constraint)
        vocabulary = self._prepared(constraint)
        matcher = LLMatcher(vocabulary, source, log_level=0, limits=LLParserLimits(**_LIMITS))
        if not matcher.is_error():
            if constraint.kind == "json_schema" and is_endless(json.loads(constraint.text)):
                message = "the schema's recursion never ends, so no value fulfils it"
                raise InvalidRequestError(constraint.field, message)
            # What is empty, or too complex to begin with, is only found out here.
            matcher.compute_bitmask()
        if matcher.is_error():
            raise InvalidRequestError(constraint.field, _refusal(constraint, matcher.get_error()))
        return Grammar(constraint, matcher)

    def _prepared(self, constraint: Constraint) -> "LLTokenizer":
        with self._lock:
            if self._vocabulary is None:
                try:
                    self._vocabulary = _vocabulary(self._tokenizer)
                except Exception as error:  # the library raises what its Rust code names
                    raise InvalidRequestError(
                        constraint.field, "this model's tokenizer cannot be used with constraints"
                    ) from error
            return self._vocabulary


def _vocabulary(tokenizer: Tokenizer) -> "LLTokenizer":
    from llguidance import LLTokenizer, TokenizerWrapper

    source: Any = tokenizer.definition()
    if source is None:
        source = TokenizerWrapper(_Bytes())
    ends = sorted(tokenizer.eos_token_ids)
    return LLTokenizer(source, n_vocab=tokenizer.vocab_size, eos_token=ends)


class _Bytes:
    """`ByteTokenizer` in the library's terms."""

    eos_token_id = ByteTokenizer.EOS
    bos_token_id = None
    tokens = (*(bytes([i]) for i in range(ByteTokenizer.EOS)), b"<end>")
    special_token_ids = (ByteTokenizer.EOS,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def _source(constraint: Constraint) -> str:
    """The constraint in the library's notation. Raises InvalidRequestError."""
    from llguidance import LLMatcher, grammar_from

    try:
        match constraint.kind:
            case "json_object" | "json_schema":
                return LLMatcher.grammar_from_json_schema(constraint.text, overrides=_JSON_OPTIONS)
            case kind:
                return grammar_from(kind, constraint.text)
    except ValueError as error:
        raise InvalidRequestError(constraint.field, _refusal(constraint, str(error))) from None


def _refusal(constraint: Constraint, error: str) -> str:
    """The compiler's reason, without the excerpts that it quotes or draws beneath."""
    lines = error.splitlines() or [""]
    causes = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if constraint.kind in ("regex", "grammar"):
        lines = [_QUOTED.sub("...", line) for line in lines]
    return f"cannot be compiled: {'; '.join(causes or lines[:1])}"[:_MAX_CAUSE_CHARS]
