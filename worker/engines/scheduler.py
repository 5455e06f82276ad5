"""Who runs next: waiting groups, running rows, slots and the KV token budget."""

from collections import deque
from collections.abc import Iterable

from millpond.messages import FinishReason
from millpond.tokenization import Tokenizer
from worker.engines.base import (
    Capacity,
    EngineEvent,
    GenerationRequest,
    Rejection,
    RejectionCode,
)
from worker.engines.sequence import Sequence


class Scheduler:
    """Owns the waiting groups and the running rows, oldest first; knows no model and no tensor."""

    def __init__(
        self, tokenizer: Tokenizer, *, slots: int, kv_tokens: int, context_tokens: int
    ) -> None:
        self._tokenizer = tokenizer
        self._slots = slots
        self._kv_tokens = kv_tokens
        self._context_tokens = context_tokens
        self._waiting: deque[list[Sequence]] = deque()
        self._live: dict[str, Sequence] = {}
        self._reserved_tokens = 0
        self._cancelled: set[str] = set()
        self.running: list[Sequence] = []

    @property
    def num_rows(self) -> int:
        return len(self._live)

    @property
    def row_limit_tokens(self) -> int:
        """The most tokens, prompt and output, that one row may reserve."""
        return min(self._context_tokens, self._kv_tokens)

    def capacity(self) -> Capacity:
        return Capacity(
            free_slots=self._slots - len(self._live),
            free_tokens=self._kv_tokens - self._reserved_tokens,
        )

    def admit(self, requests: Iterable[GenerationRequest]) -> list[Rejection]:
        """Take one group. A request that cannot run is rejected and touches no other."""
        group: list[Sequence] = []
        rejections: list[Rejection] = []
        for request in requests:
            rejection = self._refuse(request)
            if rejection is not None:
                rejections.append(rejection)
                continue
            sequence = Sequence(request, self._tokenizer)
            self._live[sequence.id] = sequence
            self._reserved_tokens += sequence.reserved_tokens
            group.append(sequence)
        if group:
            self._waiting.append(group)
        return rejections

    def cancel(self, ids: Iterable[str]) -> None:
        self._cancelled.update(i for i in ids if i in self._live)

    def end_cancelled(self) -> list[Sequence]:
        """End the rows that were cancelled since the last call, waiting ones too, and return them.

        The caller retires and collects them.
        """
        ended = [self._live[i] for i in self._cancelled if i in self._live]
        for sequence in ended:
            sequence.end(FinishReason.CANCELLED)
        self._cancelled.clear()
        return ended

    def next_group(self) -> list[Sequence]:
        """Pop the oldest waiting group, without the rows that ended while they waited."""
        while self._waiting:
            group = [s for s in self._waiting.popleft() if s.finish_reason is None]
            if group:
                return group
        return []

    def put_back(self, group: list[Sequence]) -> None:
        """Return a popped group, or a part of it, to the head of the queue."""
        self._waiting.appendleft(group)

    def start(self, group: Iterable[Sequence]) -> None:
        self.running.extend(group)
        assert len(self.running) <= self._slots

    def preempt_youngest(self) -> Sequence:
        """Put the row that started last back to wait; it will be prefilled with all its tokens."""
        sequence = self.running.pop()
        self.put_back([sequence])
        return sequence

    def retire(self) -> None:
        """Free the slots of the rows that have ended."""
        self.running = [s for s in self.running if s.finish_reason is None]

    def collect(self, touched: Iterable[Sequence]) -> list[EngineEvent]:
        """Events of these rows, and the end of those that have ended."""
        events: list[EngineEvent] = []
        for sequence in touched:
            delta = sequence.take_delta()
            if delta is not None:
                events.append(delta)
            if sequence.finish_reason is not None:
                events.append(sequence.finished())
                del self._live[sequence.id]
                self._reserved_tokens -= sequence.reserved_tokens
        return events

    def _refuse(self, request: GenerationRequest) -> Rejection | None:
        sampling = request.sampling
        if request.id in self._live:
            return Rejection(request.id, RejectionCode.INVALID, f"id {request.id!r} is running")
        if not request.prompt_token_ids:
            return Rejection(request.id, RejectionCode.INVALID, "the prompt has no tokens")
        vocab_size = self._tokenizer.vocab_size
        for name, ids in (
            ("prompt", request.prompt_token_ids),
            ("stop_token_ids", sampling.stop_token_ids),
            ("logit_bias", [token_id for token_id, _ in sampling.logit_bias]),
        ):
            if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
                return Rejection(
                    request.id,
                    RejectionCode.INVALID,
                    f"{name}: token ids must be from 0 to {vocab_size - 1}",
                )
        if sampling.max_tokens < 1:
            return Rejection(request.id, RejectionCode.INVALID, "max_tokens must be at least 1")
        num_prompt = len(request.prompt_token_ids)
        needed = num_prompt + sampling.max_tokens
        if needed > self.row_limit_tokens:
            return Rejection(
                request.id,
                RejectionCode.DOES_NOT_FIT,
                self._what_fits(num_prompt, sampling.max_tokens),
            )
        free = self.capacity()
        if free.free_slots < 1:
            return Rejection(
                request.id, RejectionCode.NO_CAPACITY, f"all {self._slots} slots are taken"
            )
        if needed > free.free_tokens:
            return Rejection(
                request.id,
                RejectionCode.NO_CAPACITY,
                f"needs {needed} tokens of KV cache, {free.free_tokens} are free now",
            )
        return None

    def _what_fits(self, num_prompt: int, max_tokens: int) -> str:
        limit = self.row_limit_tokens
        needs = (
            f"{num_prompt} prompt tokens and max_tokens {max_tokens} need {num_prompt + max_tokens}"
        )
        if num_prompt < limit:
            advice = f"max_tokens {limit - num_prompt} would fit"
        else:
            advice = f"the prompt alone is too long; {limit - 1} tokens would fit"
        return f"{needs} tokens of KV cache, a row may have {limit}: {advice}"
