"""One row's text as its tokens come: whole characters, cut before a stop string."""

from collections.abc import Sequence

from millpond.models.tokenization import Tokenizer
from worker.engines.scheduling.tail_decoder import TailDecoder


class RowText:
    """Turns token ids into text that can be shown.

    Text that may be the beginning of a stop string is held back until it is certain. The deltas
    that `push` and `finish` return, joined, are `text`; nothing of it is ever taken back.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, min_tokens: int = 0
    ) -> None:
        self._tokenizer = tokenizer
        self._stream = tokenizer.stream()
        self._tail: TailDecoder | None = None  # instead of the stream, once that has failed
        self._stop = tuple(stop)
        self._min_tokens = min_tokens
        self._token_ids: list[int] = []
        self._decoded_tokens = 0
        self._emitted: list[str] = []
        self._held = ""
        self._exempt_chars = 0
        self._stopped = False
        self._after_stop = ""

    @property
    def after_stop(self) -> str:
        """What was decoded behind the stop string."""
        return self._after_stop

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found; `text` ends before it."""
        return self._stopped

    @property
    def text(self) -> str:
        return "".join(self._emitted)

    def push(self, token_id: int) -> str:
        """Take one token, return the text that became certain with it."""
        assert not self._stopped
        self._token_ids.append(token_id)
        new = self._decode(token_id)
        if not self._stop:
            if new:
                self._emitted.append(new)
            return new
        return self._filter(new)

    def push_text(self, text: str) -> str:
        """Take text that somebody else decoded, return what became certain with it."""
        assert not self._stopped
        if not self._stop:
            self._emitted.append(text)
            return text
        return self._filter(text)

    def finish(self) -> str:
        """Return the text held back. The row takes no more tokens.

        Characters that the last token left incomplete appear as the tokenizer decodes them. A stop
        string may still come to light in them, so look at `stopped` afterwards.
        """
        if self._stopped:
            return ""
        incomplete = self._incomplete()
        if not self._stop:
            delta = incomplete
        else:
            delta = self._filter(incomplete)
            if self._stopped:
                return delta
            delta, incomplete, self._held = delta + self._held, self._held, ""
        if incomplete:
            self._emitted.append(incomplete)
        return delta

    def _incomplete(self) -> str:
        """What the tokenizer makes of all tokens beyond what was decoded so far."""
        if self._tail is not None:
            return self._tail.rest()
        whole = self._tokenizer.decode(self._token_ids) if self._token_ids else ""
        decoded = self.text + self._held
        return whole[len(decoded) :] if whole.startswith(decoded) else ""

    def _decode(self, token_id: int) -> str:
        if self._tail is None:
            try:
                new = self._stream.push(token_id)
            except Exception:  # the tokenizers library raises bare Exception on odd sequences
                self._tail = TailDecoder(self._tokenizer, self._token_ids, self._decoded_tokens)
            else:
                if new:
                    self._decoded_tokens = len(self._token_ids)
                return new
        return self._tail.read()

    def _filter(self, new: str) -> str:
        """Add decoded text to what is held, return the part that no stop string can reach."""
        self._held += new
        if len(self._token_ids) < self._min_tokens:
            # A stop string that ends within these characters does not count.
            self._exempt_chars = len(self._held)
        found = self._find_stop()
        if found is not None:
            at, stop = found
            delta, self._after_stop = self._held[:at], self._held[at + len(stop) :]
            self._held, self._stopped = "", True
        else:
            keep = self._undecided_chars()
            cut = len(self._held) - keep
            delta, self._held = self._held[:cut], self._held[cut:]
            self._exempt_chars = max(0, self._exempt_chars - cut)
        if delta:
            self._emitted.append(delta)
        return delta

    def _find_stop(self) -> tuple[int, str] | None:
        """The earliest stop string in the held text, and where it begins."""
        first: tuple[int, str] | None = None
        for stop in self._stop:
            at = self._held.find(stop, max(0, self._exempt_chars - len(stop) + 1))
            if at >= 0 and (first is None or at < first[0]):
                first = at, stop
        return first

    def _undecided_chars(self) -> int:
        """Length of the longest suffix of the held text with which a stop string begins."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest
