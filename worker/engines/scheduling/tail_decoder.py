"""Text of a row's newest tokens, decoded with a few before them: bounded work for each token."""

from collections.abc import Sequence

from millpond.models.tokenization import Tokenizer

# Tokens before the new ones that are decoded with them: what a token's text may depend on.
_CONTEXT_TOKENS = 8
# A character has four bytes at most, so that more tokens than this never wait for its end.
_PENDING_TOKENS = 16
_INCOMPLETE = "\ufffd"


class TailDecoder:
    """Goes on where a tokenizer's own stream failed. ``token_ids`` is the row's growing list; the
    text of its first ``decoded`` tokens is out already."""

    def __init__(self, tokenizer: Tokenizer, token_ids: Sequence[int], decoded: int) -> None:
        self._tokenizer = tokenizer
        self._token_ids = token_ids
        self._decoded = decoded

    def read(self) -> str:
        """Text that became certain with the tokens since the last call; whole characters only,
        unless so many tokens have waited that no character can come of them any more."""
        new = self._pending()
        undecided = new is None or new.endswith(_INCOMPLETE)
        if undecided and len(self._token_ids) - self._decoded < _PENDING_TOKENS:
            return ""
        return self._take(new)

    def rest(self) -> str:
        """The text of the remaining tokens; no more will follow."""
        return self._take(self._pending())

    def _pending(self) -> str | None:
        """What the new tokens add; None if with them the tokenizer decodes the older ones anew."""
        start = max(0, self._decoded - _CONTEXT_TOKENS)
        before = self._tokenizer.decode(self._token_ids[start : self._decoded])
        text = self._tokenizer.decode(self._token_ids[start:])
        return text[len(before) :] if text.startswith(before) else None

    def _take(self, new: str | None) -> str:
        if new is None:
            new = self._tokenizer.decode(self._token_ids[self._decoded :])
        self._decoded = len(self._token_ids)
        return new
