"""How the texts of one prompt vote: where each has its answer. The counting is the worker's."""

from enum import StrEnum
from typing import Annotated, Any

import re2
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from millpond.messages.fields import CHECKED

MAX_VOTE_PATTERN_CHARS = 1_000
MIN_VOTING_TEXTS = 2
# What a compiled pattern may take, with what its search remembers: it is compiled in 10 ms then.
MAX_COMPILED_BYTES = 512 * 1024


class VoteKind(StrEnum):
    """What of a text is its answer."""

    BOXED = "boxed"
    REGEX = "regex"
    EXACT = "exact"


def compile_vote_pattern(pattern: str) -> Any:
    """A pattern of RE2, which takes time linear in the text. Raises ValueError, also if it has no group."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = MAX_COMPILED_BYTES
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        [reason] = error.args
        reason = reason.decode(errors="replace") if isinstance(reason, bytes) else reason
        if "too large" in reason:
            raise PydanticCustomError(
                "too_large",
                "takes more than {max_length} bytes compiled",
                {"max_length": MAX_COMPILED_BYTES},
            ) from None
        what, _, _ = reason.partition(":")  # behind it stands a part of the pattern
        raise ValueError(f"is no regular expression of RE2: {what}") from None
    finally:
        re2.purge()  # its cache may come to hold a gigabyte of patterns
    if compiled.groups == 0:
        raise ValueError("needs a group, such as (\\d+), around the answer")
    return compiled


def _check(pattern: str) -> str:
    compile_vote_pattern(pattern)
    return pattern


VotePattern = Annotated[
    str, Field(min_length=1, max_length=MAX_VOTE_PATTERN_CHARS), CHECKED, AfterValidator(_check)
]
