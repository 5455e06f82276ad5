"""What a row has produced and the server does not have yet: text, reasoning, tokens."""

from dataclasses import dataclass, field

from millpond.messages import EventType
from worker.engines.base import Delta, TokenLogprobs
from worker.jobs import kept
from worker.jobs.kept import KeptRow


@dataclass(slots=True)
class UnwrittenText:
    """Text or reasoning: what waits to be written, what is on its way until the server has answered, and
    how many characters were written before. ``known_chars`` of what comes were written under an earlier
    claim, and are passed over."""

    type: EventType
    known_chars: int = 0
    waiting: str = ""
    sending: str = ""
    written_chars: int = 0

    def __post_init__(self) -> None:
        self.written_chars = self.known_chars

    def add(self, text: str) -> None:
        if self.known_chars:
            known = min(self.known_chars, len(text))
            self.known_chars -= known
            text = text[known:]
        self.waiting += text

    def send(self) -> None:
        self.sending, self.waiting = self.waiting, ""

    def sent(self) -> None:
        self.written_chars += len(self.sending)
        self.sending = ""


@dataclass(slots=True)
class UnwrittenTokens:
    """The same of tokens, which are written packed. ``known`` were kept under an earlier claim."""

    known: KeptRow
    known_tokens: int = 0
    waiting_ids: list[int] = field(default_factory=list)
    waiting_logprobs: list[TokenLogprobs] = field(default_factory=list)
    sending: bytes = b""
    written_bytes: int = 0

    def __post_init__(self) -> None:
        self.known_tokens = len(self.known.token_ids)
        self.written_bytes = len(kept.pack(self.known.token_ids, self.known.logprobs))

    def add(self, delta: Delta) -> None:
        token_ids, logprobs = delta.token_ids, delta.logprobs
        if self.known_tokens:
            known = min(self.known_tokens, len(token_ids))
            self.known_tokens -= known
            token_ids = token_ids[known:]
            logprobs = None if logprobs is None else logprobs[known:]
        self.waiting_ids += token_ids
        if logprobs is not None:
            self.waiting_logprobs += logprobs

    def send(self) -> None:
        scored = self.waiting_logprobs or None
        self.sending = kept.pack(self.waiting_ids, scored)
        self.waiting_ids, self.waiting_logprobs = [], []

    def sent(self) -> None:
        self.written_bytes += len(self.sending)
        self.sending = b""


class UnwrittenRow:
    """All of a row's. What was not answered is sent again as it was: the server knows it by its offset.

    ``written_s`` is when any of it was written last.
    """

    def __init__(self, known: KeptRow, *, said_chars: int = 0, thought_chars: int = 0) -> None:
        self.text = UnwrittenText(EventType.DELTA, said_chars)
        self.reasoning = UnwrittenText(EventType.REASONING, thought_chars)
        self.tokens = UnwrittenTokens(known)
        self.written_s = 0.0

    def add(self, delta: Delta, *, streams: bool, keeps: bool) -> None:
        """``streams``: its text is to be written. ``keeps``: its tokens are, before the text or with it."""
        if streams:
            self.reasoning.add(delta.reasoning)
            self.text.add(delta.text)
        if keeps:
            self.tokens.add(delta)

    @property
    def texts(self) -> tuple[UnwrittenText, UnwrittenText]:
        """In the order in which they are written."""
        return self.reasoning, self.text

    @property
    def has_text(self) -> bool:
        text, reasoning = self.text, self.reasoning
        return bool(text.waiting or text.sending or reasoning.waiting or reasoning.sending)

    @property
    def empty(self) -> bool:
        return not (self.has_text or self.tokens.waiting_ids or self.tokens.sending)

    def send(self) -> None:
        """What waits is on its way now, unless something was not answered."""
        if not (self.tokens.sending or any(part.sending for part in self.texts)):
            for part in (self.tokens, *self.texts):
                part.send()

    def sent(self) -> None:
        for part in (self.tokens, *self.texts):
            part.sent()
