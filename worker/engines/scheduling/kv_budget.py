"""How many tokens of KV cache each row may use, and how many fit in all, as learned from running out."""

from collections.abc import Callable

GROWTH_TOKENS = 64
# The least that is left of the budget after running out of memory, and what it wins back each time.
_STEP_SHARE = 1 / 64
# Forward passes without trouble before the budget wins something back.
_QUIET_STEPS = 64


class KVBudget:
    """Owns the rows' reservations, by id.

    Rows reserve as if they shared nothing; ``shared_tokens`` says how much of that is the same tokens counted
    again, because rows that begin alike have the same pages. ``limit_tokens`` bounds the rest. It begins at
    ``kv_tokens``, falls to what was seen to work when memory runs out, and grows back slowly. A row with
    nothing beside it may have up to ``kv_tokens`` whatever the limit: only memory itself can say that it
    does not fit.
    """

    def __init__(self, kv_tokens: int, shared_tokens: Callable[[], int] = lambda: 0) -> None:
        self.kv_tokens = kv_tokens
        self.limit_tokens = kv_tokens
        self._reserved: dict[str, int] = {}
        self._reserved_tokens = 0
        self._shared_tokens = shared_tokens
        self._quiet_steps = 0

    @property
    def free_tokens(self) -> int:
        return max(0, self.limit_tokens - self._reserved_tokens + self._shared_tokens())

    def of(self, row_id: str) -> int:
        return self._reserved.get(row_id, 0)

    def fits(self, row_id: str, tokens: int, *, owed_tokens: int = 0) -> bool:
        """Whether the row's reservation can become ``tokens`` and leave ``owed_tokens`` free."""
        others = self._reserved_tokens - self.of(row_id)
        if others + owed_tokens == 0:
            return tokens <= self.kv_tokens
        return others + owed_tokens + tokens - self._shared_tokens() <= self.limit_tokens

    def reserve(self, row_id: str, tokens: int) -> bool:
        """Make the row's reservation ``tokens``; False, and nothing changed, if there is no room."""
        if not self.fits(row_id, tokens):
            return False
        self._reserved_tokens += tokens - self.of(row_id)
        self._reserved[row_id] = tokens
        return True

    def release(self, row_id: str) -> None:
        self._reserved_tokens -= self._reserved.pop(row_id, 0)

    def step_worked(self) -> None:
        """A forward pass succeeded."""
        if self.limit_tokens < self.kv_tokens:
            self._quiet_steps += 1
            if self._quiet_steps >= _QUIET_STEPS:
                self._quiet_steps = 0
                grown = self.limit_tokens + self._step_tokens
                self.limit_tokens = min(self.kv_tokens, grown)

    def step_failed(self, worked_tokens: int) -> None:
        """Memory ran out; it is known to hold ``worked_tokens``."""
        self._quiet_steps = 0
        self.limit_tokens = min(self.limit_tokens, max(worked_tokens, self._step_tokens))

    @property
    def _step_tokens(self) -> int:
        return max(1, int(self.kv_tokens * _STEP_SHARE))
