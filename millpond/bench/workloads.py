"""What is asked: made-up texts of given lengths, or a file of one's own. Pure."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from millpond.bench.lengths import Lengths
from millpond.errors import InvalidRequestError
from millpond.openai.requests import CHAT, COMPLETIONS, Route

# One token each in the usual vocabularies, and all of one length, so that the number of words decides
# the number of tokens for tokenizers of words and of bytes alike.
_WORDS = tuple(
    word.decode()
    for word in (
        b"time year work back good life long last part very even make take know come want look find "
        b"give tell call hand well down case week home room area book word fact side kind head face "
        b"door line city name idea body team road half view land form type west east wind"
    ).split()
)
# What the client decides for every request.
_OURS = ("model", "stream", "stream_options")


@dataclass(frozen=True, slots=True)
class Question:
    """A request's route and body, without model and stream."""

    route: Route
    body: dict[str, Any]


class Workload(Protocol):
    def question(self, number: int) -> Question:
        """The same for the same number. Numbers of a run are never repeated."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How questions are put, whatever they are. ``ignore_eos`` makes answers as long as they are to be, on
    servers that know it: Millpond, vLLM, SGLang."""

    route: Route
    temperature: float
    ignore_eos: bool

    def body(self, text: str, max_tokens: int) -> dict[str, Any]:
        question = [{"role": "user", "content": text}] if self.route == CHAT else text
        return {
            "messages" if self.route == CHAT else "prompt": question,
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            **({"ignore_eos": True} if self.ignore_eos else {}),
        }


@dataclass(frozen=True, slots=True)
class Wording:
    """What a server counts for made-up words: ``fixed_tokens`` for the template, so many for each word."""

    fixed_tokens: float = 0.0
    tokens_per_word: float = 1.0

    @classmethod
    def from_counts(cls, counts: Sequence[tuple[int, int]]) -> "Wording":
        """From two numbers of words and the tokens that the server counted for each."""
        (few, few_tokens), (many, many_tokens) = counts
        per_word = max(0.1, (many_tokens - few_tokens) / (many - few))
        return cls(few_tokens - per_word * few, per_word)

    def words(self, tokens: int) -> int:
        """At least one, also where the template alone has more tokens."""
        return max(1, round((tokens - self.fixed_tokens) / self.tokens_per_word))


@dataclass(frozen=True, slots=True)
class MadeUp:
    """Random words, others for each number, so that no prefix cache knows a prompt."""

    inputs: Lengths
    outputs: Lengths
    asking: Asking
    wording: Wording
    seed: int

    def question(self, number: int) -> Question:
        chance = random.Random(f"{self.seed} {number}")
        words = self.wording.words(self.inputs.draw(chance))
        output_tokens = self.outputs.draw(chance)
        return Question(self.asking.route, self.asking.body(made_up(words, chance), output_tokens))


def made_up(words: int, chance: random.Random) -> str:
    return " ".join(chance.choices(_WORDS, k=words))


@dataclass(frozen=True, slots=True)
class FromFile:
    """A file's questions, again and again."""

    questions: Sequence[Question]

    def question(self, number: int) -> Question:
        return self.questions[number % len(self.questions)]


def read_questions(field: str, lines: Iterable[bytes]) -> FromFile:
    """Lines of OpenAI's Batch API, or bodies of its two routes; sent as they are but for model and stream.

    Raises InvalidRequestError with the number of a line that is neither.
    """
    questions = [
        _question(f"{field}, line {number}", line)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not questions:
        raise InvalidRequestError(field, "has no lines")
    return FromFile(questions)


def _question(place: str, line: bytes) -> Question:
    try:
        fields = orjson.loads(line)
    except ValueError as error:
        raise InvalidRequestError(place, f"is not JSON: {error}") from None
    body = fields.get("body", fields) if isinstance(fields, dict) else None
    if not isinstance(body, dict) or ("messages" in body) == ("prompt" in body):
        raise InvalidRequestError(place, "must be a body with either messages or prompt")
    if type(body.get("n", 1)) is not int or body.get("n", 1) != 1:
        raise InvalidRequestError(place, "n must be 1", limit=1)
    own = {name: value for name, value in body.items() if name not in _OURS}
    return Question(CHAT if "messages" in body else COMPLETIONS, own)
