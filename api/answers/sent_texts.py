"""What has been sent of a streamed completion, and the chunks of what is new."""

from collections.abc import Iterator, Sequence
from typing import Any

from millpond.messages import Choice, EventType, JobEvent, JobResult
from millpond.openai.responses import Chunks, StreamedTexts, numbered


class SentTexts:
    """The texts and the reasonings of a request's choices, ``n`` for each of its jobs.

    With the ``prompt_tokens`` of each job every chunk has the usage of its choice so far.
    """

    def __init__(
        self, shapes: Chunks, n: int, jobs: int, prompt_tokens: Sequence[int] | None
    ) -> None:
        self._shapes = shapes
        self._n = n
        self._prompt_tokens = prompt_tokens
        self._texts, self._thoughts = StreamedTexts(n * jobs), StreamedTexts(n * jobs)
        self._tokens = [0] * (n * jobs)

    def role(self, index: int) -> dict[str, Any]:
        return self._counted(self._shapes.role(index), index)

    def next_part(self, event: JobEvent, first: int) -> Iterator[dict[str, Any]]:
        """Of a job whose choices begin with number ``first``. Raises ChangedTextError."""
        index = first + (event.index or 0)
        if event.type in (EventType.REASONING, EventType.DELTA):
            # An upstream that tells no tokens sends about one with each piece.
            told = self._tokens[index] + 1 if event.tokens is None else event.tokens
            self._tokens[index] = max(self._tokens[index], told)
        match event.type:
            case EventType.REASONING:
                if part := self._thoughts.new_part(index, event.offset, event.text):
                    yield self._counted(self._shapes.reasoning(index, part), index)
            case EventType.DELTA:
                if part := self._texts.new_part(index, event.offset, event.text):
                    yield self._counted(self._shapes.text(index, part), index)

    def last_parts(self, result: JobResult, first: int) -> Iterator[dict[str, Any]]:
        """What is left to send of a job that has ended. Raises ChangedTextError."""
        if result.choices is None and result.usage is not None:
            self._tokens[first] = result.usage.completion_tokens
        for choice in numbered(result, first):
            yield from self._last_parts(choice)
        if result.vote is not None:
            yield self._shapes.vote(result.vote, first)

    def _last_parts(self, choice: Choice) -> Iterator[dict[str, Any]]:
        index = choice.index
        if thought := self._thoughts.rest(index, choice.reasoning_content):
            yield self._counted(self._shapes.reasoning(index, thought), index)
        if rest := self._texts.rest(index, choice.text):
            yield self._counted(self._shapes.text(index, rest), index)
        yield self._counted(self._shapes.end(choice), index)

    def _counted(self, shape: dict[str, Any], index: int) -> dict[str, Any]:
        if self._prompt_tokens is None:
            return shape
        prompt, written = self._prompt_tokens[index // self._n], self._tokens[index]
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
        }
        return {**shape, "usage": usage}
