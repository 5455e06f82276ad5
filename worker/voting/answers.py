"""The answer in a text, by which texts of the same prompt are compared."""

import re
import time
from collections.abc import Callable
from typing import Any

from millpond.messages.votes import VoteKind, compile_vote_pattern

# A pattern is searched for in the end of a text, where answers stand, and for so long in all: each single
# search takes time linear in the text, but there can be as many as it has characters.
SEARCHED_CHARS = 8_192
SEARCH_S = 0.1

FindAnswer = Callable[[str], str | None]

_BOX_OR_BRACE = re.compile(r"\\boxed\s*\{|\\[\\{}]|[{}]")
# What TeX sets differently, and reads the same.
_SAME_TO_TEX = (
    (re.compile(r"\\[!,;: ]"), " "),
    (re.compile(r"\\(?:left|right)(?![a-zA-Z])"), ""),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\{,\}"), ","),
)
_WORDS_ONLY = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\s*\{([^{}]*)\}")
_NEEDLESS_SPACE = re.compile(r"(?<!\w)\s+|\s+(?!\w)")
_GROUPED_DIGITS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")


def answer_finder(kind: VoteKind, pattern: str | None) -> FindAnswer:
    """What finds the answer in a text, None where it has none. ``pattern`` is that of a vote by ``regex``."""
    match kind:
        case VoteKind.BOXED:
            return boxed_answer
        case VoteKind.REGEX:
            assert pattern is not None
            compiled = compile_vote_pattern(pattern)
            return lambda text: matched_answer(compiled, text)
        case VoteKind.EXACT:
            return lambda text: text.strip() or None


def boxed_answer(text: str) -> str | None:
    r"""What the last ``\boxed{...}`` holds, normalised. Braces are balanced; escaped ones do not count."""
    opened: list[int | None] = []  # where the content of a box begins; None is another brace
    last: tuple[int, int] | None = None
    for found in _BOX_OR_BRACE.finditer(text):
        if found[0] == "{":
            opened.append(None)
        elif found[0] == "}":
            start = opened.pop() if opened else None
            if start is not None and (last is None or start > last[0]):
                last = start, found.start()
        elif found[0].startswith(r"\boxed"):
            opened.append(found.end())
    return None if last is None else normalised(text[slice(*last)]) or None


def normalised(answer: str) -> str:
    """The same for answers that mean the same to TeX; whole numbers without separators."""
    answer = answer.strip().strip("$")
    for pattern, instead in _SAME_TO_TEX:
        answer = pattern.sub(instead, answer)
    if words := _WORDS_ONLY.fullmatch(answer.strip()):
        answer = words[1]
    answer = _NEEDLESS_SPACE.sub("", " ".join(answer.split())).removesuffix(".")
    return answer.replace(",", "") if _GROUPED_DIGITS.fullmatch(answer) else answer


def matched_answer(pattern: Any, text: str) -> str | None:
    """The first group of the last match. None, too, for a pattern that takes too long.

    The time is the thread's own, so that a busy machine does not change a vote.
    """
    last = None
    until_s = time.thread_time() + SEARCH_S
    for match in pattern.finditer(text[-SEARCHED_CHARS:]):
        if time.thread_time() > until_s:
            return None
        last = match
    answer: str | None = None if last is None else last.group(1)
    return None if answer is None else answer.strip() or None
