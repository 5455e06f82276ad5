"""Who runs next: waiting groups, running rows, slots and the KV token budget.

A row is admitted with room for its prompt and for the output that is predicted of it, and gets more
as it grows. When there is no more, the youngest row is preempted: it gives up its room, waits, and is
prefilled with all its tokens once there is room again. The oldest row is never preempted for another,
so it ends, and then the next is the oldest: every row ends. Rows that were preempted go first, oldest
first, and what they need is kept from new ones.

Prefill takes turns with decoding: between two decode steps at most ``max_batched_tokens`` are prefilled,
so that no running row waits longer than that for its next token, whatever the prompts that come.
"""

import bisect
from collections import deque
from collections.abc import Callable, Collection, Iterable
from itertools import chain

from millpond.messages import FinishReason
from millpond.models.tokenization import Tokenizer
from worker.engines.base import (
    Capacity,
    EngineEvent,
    GenerationRequest,
    Rejection,
    RejectionCode,
)
from worker.engines.scheduling.kv_budget import GROWTH_TOKENS, KVBudget
from worker.engines.scheduling.prefill import Chunk, GroupPrefill
from worker.engines.scheduling.row import Row


class Scheduler:
    """Owns the waiting groups, the group that is prefilled, the rows that were preempted, and the
    running rows.

    Knows no model and no tensor.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        slots: int,
        kv_tokens: int,
        context_tokens: int,
        max_batched_tokens: int = 2048,
        adapters: Collection[str] = (),
        shared_tokens: Callable[[], int] = lambda: 0,
    ) -> None:
        """``shared_tokens`` are those of the KV cache that rows have in common, counted once for each row
        but the first; less by a row's own as soon as its cache is freed."""
        self._adapters = frozenset(adapters)
        self._tokenizer = tokenizer
        self._slots = slots
        self._context_tokens = context_tokens
        self._max_batched_tokens = max_batched_tokens
        self._prefilled_tokens = 0  # since the last decode step
        self._shared_tokens = shared_tokens
        self._budget = KVBudget(kv_tokens, shared_tokens)
        self._waiting: deque[list[Row]] = deque()
        self._preempted: list[Row] = []
        self._live: dict[str, Row] = {}
        self._arrivals = 0
        self._cancelled: set[str] = set()
        self._over: list[Row] = []  # admitted with all of their tokens
        self.prefill: GroupPrefill | None = None
        self.running: list[Row] = []

    @property
    def num_rows(self) -> int:
        return len(self._live)

    @property
    def row_limit_tokens(self) -> int:
        """The most tokens, prompt and output, that one row may reserve."""
        return min(self._context_tokens, self._budget.kv_tokens)

    def capacity(self) -> Capacity:
        return Capacity(
            free_slots=self._slots - len(self._live),
            free_tokens=max(0, self._budget.free_tokens - self._owed_tokens),
        )

    def admit(self, requests: Iterable[GenerationRequest]) -> list[Rejection]:
        """Take one group. A request that cannot run is rejected and touches no other."""
        group: list[Row] = []
        rejections: list[Rejection] = []
        for request in requests:
            rejection = self._refuse(request)
            if rejection is not None:
                rejections.append(rejection)
                continue
            row = Row(request, self._tokenizer)
            row.arrival = self._arrivals
            self._arrivals += 1
            self._live[row.id] = row
            reserved = self._budget.reserve(row.id, request.expected_tokens)
            assert reserved
            (group if row.finish_reason is None else self._over).append(row)
        if group:
            self._waiting.append(group)
        return rejections

    def cancel(self, ids: Iterable[str]) -> None:
        self._cancelled.update(i for i in ids if i in self._live)

    def take_ended(self) -> list[Row]:
        """The rows that end without another token since the last call: those that were cancelled, waiting
        ones too, and those that were over when they came.

        The caller retires and collects them.
        """
        over, self._over = self._over, []
        cancelled = [self._live[i] for i in self._cancelled if i in self._live]
        ended = [row for row in cancelled if row.finish_reason is None]
        for row in ended:
            row.end(FinishReason.CANCELLED)
        self._cancelled.clear()
        return ended + over

    def next_group(self) -> list[Row]:
        """Pop what is to be prefilled now: rows that were preempted and have room, else the oldest
        waiting group."""
        resumed = self._resumable()
        if resumed:
            return resumed
        return self._waiting.popleft() if self._waiting else []

    def begin_prefill(self) -> bool:
        """Whether the next step is a prefill and not a decode step; then `prefill` is to be read.

        False once `max_batched_tokens` were prefilled while rows run, until it is asked again.
        """
        if self.running and self._prefilled_tokens >= self._max_batched_tokens:
            self._prefilled_tokens = 0
            return False
        if self.prefill is None and (group := self.next_group()):
            self.prefill = GroupPrefill(group)
        if self.prefill is None:
            self._prefilled_tokens = 0
        return self.prefill is not None

    def next_chunk(self, waiting: Collection[str] = ()) -> Chunk:
        """What the prefill step reads; the rows of `prefill` have their places, and ``waiting`` are those
        that another of them reads for."""
        assert self.prefill is not None
        used = self._prefilled_tokens if self.running else 0
        chunk = self.prefill.next_chunk(self._max_batched_tokens - used, waiting)
        self._prefilled_tokens = used + chunk.num_tokens
        return chunk

    def give_up_prefill(self) -> list[Row]:
        """Take back the rows of `prefill` that have not started. The caller frees their places."""
        assert self.prefill is not None
        rows, self.prefill = self.prefill.rows, None
        for row in rows:
            row.read_tokens = 0
        return rows

    def split(self, group: list[Row]) -> None:
        """Return a group to the head of the queue, as two."""
        half = len(group) // 2
        self._waiting.extendleft((group[half:], group[:half]))

    def start(self, rows: Collection[Row]) -> None:
        """These rows of `prefill` have been read to their ends."""
        assert self.prefill is not None
        for row in rows:
            if not row.group_rows:  # else it was preempted, and this is not its first group
                row.group_rows = self.prefill.group_rows
        self.prefill.remove(rows)
        if not self.prefill.rows:
            self.prefill = None
        self.running.extend(rows)
        assert len(self.running) <= self._slots

    def make_room(self, free: Callable[[Row], None]) -> list[Row]:
        """Reserve a place for each running row's newest token, for the oldest row first.

        Returns the rows that were preempted for it, of each of which the cache was freed by ``free``.
        """
        growing = [s for s in self.running if s.num_tokens > self._budget.of(s.id)]
        losers: list[Row] = []
        for row in sorted(growing, key=_arrival):
            if row in losers:
                continue
            wanted = max(row.num_tokens, self._budget.of(row.id) + GROWTH_TOKENS)
            while not self._budget.reserve(row.id, min(wanted, row.most_tokens)):
                youngest = max((*self._placed, *chain(*self._waiting)), key=_arrival)
                losers.append(youngest)
                free(youngest)
                self.preempt(youngest)
                if youngest is row:
                    break
        return losers

    def room_tokens(self, row: Row) -> int:
        """Tokens that the row's reservation has room for beside those that it has."""
        return self._budget.of(row.id) - row.num_tokens

    @property
    def youngest(self) -> Row:
        """Of the rows that take memory: those that run or are being read."""
        return max(self._placed, key=_arrival)

    def preempt(self, row: Row) -> None:
        """Take the row's room; it waits, to be prefilled with all its tokens when there is room."""
        self._remove({row.id})
        self._budget.release(row.id)
        row.read_tokens = 0
        bisect.insort(self._preempted, row, key=_arrival)

    def step_worked(self) -> None:
        """A forward pass had enough memory."""
        self._budget.step_worked()

    def step_failed(self, worked_tokens: int) -> None:
        """Memory ran out; it should hold ``worked_tokens``. The budget is that for a while."""
        self._budget.step_failed(worked_tokens)

    @property
    def num_placed(self) -> int:
        """Rows that take memory."""
        return len(self._placed)

    @property
    def placed_tokens(self) -> int:
        return sum(row.num_tokens for row in self._placed) - self._shared_tokens()

    def retire(self) -> None:
        """Free the slots of the rows that have ended."""
        self._remove({i for i, row in self._live.items() if row.finish_reason is not None})
        self._preempted = [s for s in self._preempted if s.finish_reason is None]

    def collect(self, touched: Iterable[Row]) -> list[EngineEvent]:
        """Events of these rows, and the end of those that have ended."""
        events: list[EngineEvent] = []
        for row in touched:
            delta = row.take_delta()
            if delta is not None:
                events.append(delta)
            if row.finish_reason is not None:
                events.append(row.finished())
                del self._live[row.id]
                self._budget.release(row.id)
        return events

    def _refuse(self, request: GenerationRequest) -> Rejection | None:
        sampling = request.sampling
        if request.id in self._live:
            return Rejection(request.id, RejectionCode.INVALID, f"id {request.id!r} is running")
        if not request.prompt_token_ids:
            return Rejection(request.id, RejectionCode.INVALID, "the prompt has no tokens")
        if request.adapter is not None and request.adapter not in self._adapters:
            message = f"adapter {request.adapter!r} is not loaded"
            return Rejection(request.id, RejectionCode.INVALID, message)
        vocab_size = self._tokenizer.vocab_size
        for name, ids in (
            ("prompt", request.prompt_token_ids),
            ("kept tokens", request.kept_token_ids),
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
        wanted = request.expected_tokens
        if not self._budget.fits(request.id, wanted, owed_tokens=self._owed_tokens):
            return Rejection(
                request.id,
                RejectionCode.NO_CAPACITY,
                f"needs {wanted} tokens of KV cache, {free.free_tokens} are free now",
            )
        return None

    @property
    def _placed(self) -> list[Row]:
        reading = self.prefill.rows if self.prefill is not None and self.prefill.begun else []
        return [*self.running, *reading]

    def _remove(self, ids: Collection[str]) -> None:
        """Remove the row, whether it runs, is being read or waits."""
        if not ids:
            return
        self.running = [row for row in self.running if row.id not in ids]
        groups = ([row for row in group if row.id not in ids] for group in self._waiting)
        self._waiting = deque(group for group in groups if group)
        if self.prefill is not None:
            self.prefill.remove(row for row in self.prefill.rows if row.id in ids)
            if not self.prefill.rows:
                self.prefill = None

    @property
    def _owed_tokens(self) -> int:
        return sum(s.wanted_tokens for s in self._preempted)

    def _resumable(self) -> list[Row]:
        """Pop the oldest rows that were preempted, as far as there is room. None overtakes another:
        the small ones would keep a large one waiting for ever."""
        count = 0
        for row in self._preempted:
            if not self._budget.reserve(row.id, row.wanted_tokens):
                break
            count += 1
        resumed, self._preempted = self._preempted[:count], self._preempted[count:]
        return resumed

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


def _arrival(row: Row) -> int:
    return row.arrival
