"""Which tokens may come next in a constrained row."""

from array import array

from millpond.models.grammars import Grammar


class Matcher:
    """Follows one row through its grammar. ``mask`` has a bit for each token, the lowest bit of the first
    word for token 0; `compute` sets it, `accept` makes it out of date."""

    def __init__(self, grammar: Grammar, vocab_size: int) -> None:
        self._matcher = grammar.matcher.deep_copy()
        self._none = array("I", bytes(4 * -(-vocab_size // 32)))
        self.mask = self._none[:]

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing can be added to it."""
        return bool(self._matcher.is_stopped())

    @property
    def error(self) -> str | None:
        """Why nothing more can be generated, which the grammar's complexity may cause at any token."""
        if not self._matcher.is_error():
            return None
        return str(self._matcher.get_error()).partition("\n")[0]

    def compute(self) -> None:
        """Releases the GIL. After an error no token is allowed."""
        if self.error is None:
            address, words = self.mask.buffer_info()
            self._matcher.unsafe_compute_mask_ptr(address, words * self.mask.itemsize)
        if self.error is not None:
            self.mask[:] = self._none

    def accept(self, token_id: int) -> bool:
        """False if the token is not allowed, or an error comes to light."""
        return bool(self._matcher.consume_token(token_id))

    def allows(self, token_id: int) -> bool:
        return bool(self.mask[token_id // 32] >> (token_id % 32) & 1)
