"""One row's text in two: what the model thinks, between its markers, and the answer behind."""

from collections.abc import Sequence
from enum import Enum, auto

from millpond.models.presets import ThinkingMarkers
from millpond.models.tokenization import Tokenizer
from worker.engines.scheduling.row_text import RowText


class _Part(Enum):
    OPENING = auto()  # nothing but white space and, perhaps, the beginning of the start marker
    THINKING = auto()
    ANSWER = auto()


class SplitText:
    """Takes tokens, or text, and gives what became certain of either part.

    Without ``markers``, and for a text that does not begin with the start marker, all is answer. ``opened``:
    the prompt ends with the start marker. White space behind a marker is dropped. Stop strings and
    ``min_tokens`` are the answer's. ``constrained``: the answer begins with a token of its own, so what the
    last token of the reasoning has behind the end marker is dropped.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        markers: ThinkingMarkers | None,
        *,
        opened: bool = False,
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        constrained: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._constrained = constrained
        self._stop = tuple(stop)
        self._min_tokens = min_tokens
        self._part = _Part.ANSWER
        self._start = ""
        # What came before the answer: tokens, or text where there are none.
        self._token_ids: list[int] = []
        self._raw_text = ""
        self._opening = ""
        self._reasoned = False
        self._reasoning: list[str] = []
        self._text: list[str] = []
        self._taken = (0, 0)
        self._answer = RowText(tokenizer, self._stop, min_tokens=min_tokens)
        if markers is not None:
            self._part = _Part.THINKING if opened else _Part.OPENING
            self._start = markers.start
            self._thought = RowText(tokenizer, (markers.end,))

    @property
    def answering(self) -> bool:
        """Whether the reasoning, if any, is over."""
        return self._part is _Part.ANSWER

    @property
    def reasoning_tokens(self) -> int:
        """Tokens before the answer, the markers among them."""
        return len(self._token_ids)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found in the answer, which ends before it."""
        return self._answer.stopped

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    def push(self, token_id: int) -> None:
        if self._part is _Part.ANSWER:
            self._say(self._answer.push(token_id))
        else:
            self._token_ids.append(token_id)
            self._think(self._thought.push(token_id))

    def push_text(self, text: str) -> None:
        """Take text that somebody else decoded."""
        if self._part is _Part.ANSWER:
            self._say(self._answer.push_text(text))
        else:
            self._raw_text += text
            self._think(self._thought.push_text(text))

    def finish(self) -> None:
        """The row takes no more tokens: what was held back becomes certain."""
        if self._part is not _Part.ANSWER:
            self._think(self._thought.finish())
        if self._part is _Part.OPENING:
            self._take_back_opening()
        if self._part is _Part.ANSWER:
            self._say(self._answer.finish())

    def take(self) -> tuple[str, str]:
        """Reasoning and text since the last call."""
        thought, said = self._taken
        self._taken = len(self._reasoning), len(self._text)
        return "".join(self._reasoning[thought:]), "".join(self._text[said:])

    def _think(self, new: str) -> None:
        if self._part is _Part.OPENING:
            self._opening += new
            seen = self._opening.lstrip()
            if not seen.startswith(self._start):
                if self._thought.stopped or not self._start.startswith(seen):
                    self._take_back_opening()
                return
            self._part, new = _Part.THINKING, seen.removeprefix(self._start)
        _add(self._reasoning, new)
        if self._thought.stopped:
            self._part, self._reasoned = _Part.ANSWER, True
            left = max(0, self._min_tokens - len(self._token_ids))
            self._answer = RowText(self._tokenizer, self._stop, min_tokens=left)
            if not self._constrained:
                self._say(self._answer.push_text(self._thought.after_stop))

    def _take_back_opening(self) -> None:
        """The model does not think this time: all that came is answer."""
        self._part = _Part.ANSWER
        token_ids, self._token_ids = self._token_ids, []
        if self._raw_text:
            self._say(self._answer.push_text(self._raw_text))
        for token_id in token_ids:
            if not self._answer.stopped:
                self._say(self._answer.push(token_id))

    def _say(self, new: str) -> None:
        if self._reasoned:
            _add(self._text, new)
        elif new:
            self._text.append(new)


def _add(parts: list[str], new: str) -> None:
    """White space before the first part is dropped."""
    new = new if parts else new.lstrip()
    if new:
        parts.append(new)
