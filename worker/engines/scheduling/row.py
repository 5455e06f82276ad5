"""One job's tokens and progress inside an engine."""

from collections import deque
from collections.abc import Collection, Sequence

from millpond.messages import FinishReason
from millpond.models.tokenization import Tokenizer
from worker.engines.base import (
    Delta,
    Finished,
    GenerationRequest,
    RowStats,
    RowUsage,
    TokenLogprobs,
)
from worker.engines.scheduling.kv_budget import GROWTH_TOKENS
from worker.engines.scheduling.loop_finder import LoopFinder
from worker.engines.scheduling.matcher import Matcher
from worker.engines.scheduling.split_text import SplitText
from worker.engines.scheduling.token_counts import TokenCounts

# No marker has more tokens, with the white space behind it.
_MARKER_TOKENS = 24


class Row:
    """Owns a row's tokens, its text and the conditions that end it.

    Tokens that were kept of it are there from the beginning, and may have ended it. More go in by `append`
    until `finish_reason` is set, by a token or by `end`; after every step `take_delta` gives what is new.
    ``decode_steps`` and ``decode_rows`` count the steps that this row took part in and the rows of all those
    steps; of its ``drafted_tokens``, ``accepted_tokens`` were right. ``counts`` is kept for rows with
    penalties, ``matcher`` for constrained ones; ``arrival`` is the row's place in the order of admission,
    which the scheduler gives it.
    ``cached_tokens`` of its prompt were there already when it was first read, by the engine's account.
    ``read_tokens`` are in the KV cache: some of them while the row is prefilled, then all but the newest.
    """

    __slots__ = (
        "_end_token_ids",
        "_expected_tokens",
        "_forced",
        "_grammar",
        "_loop",
        "_markers",
        "_split",
        "_taken_tokens",
        "_tokenizer",
        "accepted_tokens",
        "adapter",
        "adjusts_logits",
        "arrival",
        "cache_salt",
        "cached_tokens",
        "counts",
        "decode_rows",
        "decode_steps",
        "drafted_tokens",
        "error",
        "finish_reason",
        "group_rows",
        "id",
        "logprobs",
        "matcher",
        "prompt_token_ids",
        "read_tokens",
        "retryable",
        "sampling",
        "token_ids",
        "usage",
    )

    def __init__(self, request: GenerationRequest, tokenizer: Tokenizer) -> None:
        sampling = request.sampling
        self.id = request.id
        self.prompt_token_ids = list(request.prompt_token_ids)
        self.sampling = sampling
        self.adapter = request.adapter
        self.cache_salt = request.cache_salt
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.arrival = 0
        self.read_tokens = 0
        self._expected_tokens = request.expected_tokens
        self.finish_reason: FinishReason | None = None
        self.error: str | None = None
        self.retryable = False
        self.group_rows = 0
        self.cached_tokens = 0
        self.decode_steps = 0
        self.decode_rows = 0
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self.counts = _counts(request)
        self.adjusts_logits = self.counts is not None or bool(sampling.logit_bias)
        self._grammar = request.grammar
        self.matcher: Matcher | None = None
        self.usage: RowUsage | None = None
        end_ids: Collection[int] = () if sampling.ignore_eos else tokenizer.eos_token_ids
        self._end_token_ids = frozenset((*end_ids, *sampling.stop_token_ids))
        self._loop = None if sampling.loop_repeats is None else LoopFinder(sampling.loop_repeats)
        self._tokenizer = tokenizer
        self._markers = request.thinking
        opened = self._markers is not None and _ends_with(
            self.prompt_token_ids, self._markers.start, tokenizer
        )
        self._split = SplitText(
            tokenizer,
            self._markers,
            opened=opened,
            stop=sampling.stop,
            min_tokens=sampling.min_tokens,
            constrained=self._grammar is not None,
        )
        self._forced: deque[int] = deque()
        if self._grammar is not None and self._markers is not None and not opened:
            self._force(f"{self._markers.start}\n")
        self._follow_grammar()
        self._taken_tokens = 0
        self._replay(request)

    @property
    def most_tokens(self) -> int:
        """The most tokens of KV cache that this row can need."""
        return len(self.prompt_token_ids) + self.sampling.max_tokens

    @property
    def wanted_tokens(self) -> int:
        """Tokens of KV cache to reserve for this row when it starts, or starts again.

        A row that outgrew what was expected of it gets half its output more, so that being preempted
        and read again costs it a fixed share of its work, however often that happens.
        """
        if not self.token_ids:
            return self._expected_tokens
        more = max(GROWTH_TOKENS, len(self.token_ids) // 2)
        return min(self.most_tokens, max(self._expected_tokens, self.num_tokens + more))

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.token_ids)

    @property
    def all_token_ids(self) -> list[int]:
        """Prompt and output as one."""
        return self.prompt_token_ids + self.token_ids

    @property
    def next_token_id(self) -> int:
        """The first that has not been read."""
        output = self.read_tokens - len(self.prompt_token_ids)
        return self.token_ids[output] if output >= 0 else self.prompt_token_ids[self.read_tokens]

    @property
    def suppressed_token_ids(self) -> Collection[int]:
        """Tokens that must not be generated next: those that would end the row too early."""
        still_thinking = self._grammar is not None and self.matcher is None
        early = len(self.token_ids) + 1 < self.sampling.min_tokens
        return self._end_token_ids if still_thinking or early else ()

    @property
    def forced_token_id(self) -> int | None:
        """The token that must come next, whatever the model would choose."""
        return self._forced[0] if self._forced else None

    def append(self, token_id: int, logprobs: TokenLogprobs | None = None) -> None:
        """Take the next generated token; sets `finish_reason` if it ends the row."""
        assert self.finish_reason is None
        if logprobs is not None:
            self.logprobs.append(logprobs)
        self.read_tokens = self.num_tokens  # it was drawn from what was read
        self.token_ids.append(token_id)
        if self.counts is not None:
            self.counts.add(token_id)
        num_generated = len(self.token_ids)
        looping = self._loop is not None and self._loop.push(token_id)
        if token_id in self._end_token_ids and num_generated >= self.sampling.min_tokens:
            self.end(FinishReason.STOP)
            return
        if self.matcher is not None and not self.matcher.accept(token_id):
            self.fail_constraint()
            return
        self._split.push(token_id)
        if self._forced:
            forced = self._forced.popleft()
            assert token_id == forced
        self._stop_thinking_in_time()
        self._follow_grammar()
        if self._split.stopped or (self.matcher is not None and self.matcher.finished):
            self.end(FinishReason.STOP)
        elif num_generated >= self.sampling.max_tokens:
            self.end(FinishReason.LENGTH)
        elif looping and num_generated >= self.sampling.min_tokens:
            self.end(FinishReason.LOOP)

    def _replay(self, request: GenerationRequest) -> None:
        """Take the tokens that were generated before. The engine has read none of them."""
        logprobs = request.kept_logprobs
        for place, token_id in enumerate(request.kept_token_ids):
            self.append(token_id, None if logprobs is None else logprobs[place])
            if self.finish_reason is not None:
                break
        self.read_tokens = 0

    def fail_constraint(self) -> None:
        """End the row, whose constraint has become too complex."""
        assert self.matcher is not None
        cause = self.matcher.error or "the token is not allowed"
        self.end(FinishReason.ERROR, f"the constraint cannot be followed any further: {cause}")

    def reject(self, error: str) -> None:
        """The row has ended by itself, but its text is wrong."""
        assert self.finish_reason is FinishReason.STOP
        self.finish_reason, self.error = FinishReason.ERROR, error

    def append_text(self, text: str) -> None:
        """Take text of which the tokens are not known; sets `finish_reason` at a stop string.

        Whoever calls it says when the row ends, and sets ``usage``.
        """
        assert self.finish_reason is None
        self._split.push_text(text)
        if self._split.stopped:
            self.end(FinishReason.STOP)

    def end(
        self, reason: FinishReason, error: str | None = None, *, retryable: bool = False
    ) -> None:
        """End the row. ``error`` is given exactly with reason ERROR; see `Finished`."""
        assert self.finish_reason is None
        assert (reason is FinishReason.ERROR) == (error is not None)
        self._split.finish()
        if reason is FinishReason.LENGTH and self._split.stopped:
            reason = FinishReason.STOP
        self.finish_reason = reason
        self.error = error
        self.retryable = retryable

    @property
    def text(self) -> str:
        """All text of the answer so far that is certain."""
        return self._split.text

    def take_delta(self) -> Delta | None:
        """Tokens and text since the last call, None if there are none."""
        new_ids = tuple(self.token_ids[self._taken_tokens :])
        reasoning, text = self._split.take()
        if not new_ids and not reasoning and not text:
            return None
        asked = self.sampling.logprobs is not None
        logprobs = tuple(self.logprobs[self._taken_tokens :]) if asked else None
        self._taken_tokens = len(self.token_ids)
        return Delta(self.id, text, new_ids, reasoning, logprobs)

    def finished(self) -> Finished:
        assert self.finish_reason is not None
        return Finished(
            id=self.id,
            reason=self.finish_reason,
            text=self._split.text,
            token_ids=tuple(self.token_ids),
            stats=RowStats(
                group_rows=self.group_rows,
                batch_rows=self.decode_rows / self.decode_steps if self.decode_steps else 0.0,
                cached_tokens=min(self.cached_tokens, len(self.prompt_token_ids))
                if self.usage is None
                else self.usage.cached,
                drafted_tokens=self.drafted_tokens,
                accepted_tokens=self.accepted_tokens,
            ),
            error=self.error,
            retryable=self.retryable,
            logprobs=None if self.sampling.logprobs is None else tuple(self.logprobs),
            usage=self.usage,
            reasoning=self._split.reasoning,
            reasoning_tokens=self._split.reasoning_tokens,
        )

    def _stop_thinking_in_time(self) -> None:
        """Once it has thought for long enough, the end marker is put into the row's mouth."""
        most = self.sampling.max_reasoning_tokens
        if most is None or self._markers is None or self._split.answering or self._forced:
            return
        if len(self.token_ids) >= most:
            self._force(f"\n{self._markers.end}\n\n")

    def _force(self, text: str) -> None:
        self._forced.extend(self._tokenizer.encode_part(text))

    def _follow_grammar(self) -> None:
        """A constraint is the answer's: it begins when the reasoning is over."""
        wanted = self._grammar is not None and self.matcher is None
        if wanted and self._split.answering and not self._forced:
            assert self._grammar is not None
            self.matcher = Matcher(self._grammar, self._tokenizer.vocab_size)


def _ends_with(token_ids: Sequence[int], text: str, tokenizer: Tokenizer) -> bool:
    """Whether so many tokens, decoded, end with this text and perhaps white space."""
    tail = tokenizer.decode(token_ids[-_MARKER_TOKENS:])
    return tail.rstrip().endswith(text)


def _counts(request: GenerationRequest) -> TokenCounts | None:
    """What the row's penalties need to know, None without any."""
    sampling = request.sampling
    if sampling.repetition_penalty != 1:
        return TokenCounts(request.prompt_token_ids)
    if sampling.presence_penalty or sampling.frequency_penalty:
        return TokenCounts()
    return None
