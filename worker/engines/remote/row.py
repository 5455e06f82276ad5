"""One row at the upstream: what has come of it so far and how its next request goes on from there."""

from millpond.messages import FinishReason
from worker.engines.base import GenerationRequest, RowUsage, TokenLogprobs
from worker.engines.remote.wire import Chunk, follows
from worker.engines.scheduling.row import Row

MAX_FAILURES = 5
ANOTHER_TEXT = "the stream was cut, and the upstream wrote another text when it was asked again"


class RowError(Exception):
    """This row cannot be ended as it should: it ends with this message. ``retryable``: see `Finished`."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class RemoteRow:
    """``exact`` rows are made of token ids, and a new request goes on behind the last of them.

    Other rows are made of text. A new request begins again, and must repeat what was already given
    out before anything is added; so nothing is emitted twice and nothing left out. Exact rows do so
    too if they have penalties or a constraint, which are of generated tokens alone: going on behind them
    would make a prompt of them.
    """

    def __init__(self, request: GenerationRequest, row: Row, *, exact: bool) -> None:
        self.request = request
        self.row = row
        self.not_before_s = 0.0
        self.refusals = 0
        self._exact = exact
        sampling = request.sampling
        self._begins_again = not exact or bool(
            sampling.presence_penalty or sampling.frequency_penalty or request.grammar is not None
        )
        self._failures = 0
        self._text = ""  # as received, over all requests; of rows of text
        self._num_repeated = 0  # characters, or tokens, of it that this request has sent again
        self._num_chunks = 0
        self._in_reasoning = False  # of a text whose reasoning the upstream tells apart
        self._end: FinishReason | None = None
        self._usage: RowUsage | None = None

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def ended(self) -> bool:
        return self.row.finish_reason is not None

    def begin(self) -> tuple[int, ...]:
        """A new request is opened: the tokens behind which it goes on."""
        self._num_chunks = 0
        self._end = None
        self._num_repeated = 0
        self._in_reasoning = False
        if self._begins_again:
            return ()
        self._num_repeated = len(self.row.token_ids)
        return tuple(self.row.token_ids)

    def take(self, chunk: Chunk, num_open: int) -> None:
        """``num_open`` requests are open at this moment. Raises RowError."""
        self._end = chunk.end or self._end
        self._usage = chunk.usage or self._usage
        if self.ended:
            return
        if self._exact:
            self._take_tokens(chunk, num_open)
            if self._end is not None and not self.ended:
                self._check_repeated(len(self.row.token_ids))
                self.row.end(self._end)
            self._check_constraint()
        elif text := self._marked(chunk):
            self._num_chunks += 1
            self._take_text(text)
            self._count_step(1, num_open)
            if self.ended:
                self.cancel()

    def _marked(self, chunk: Chunk) -> str:
        """The chunk's text as the model wrote it: where the upstream has cut the reasoning out, its markers
        are put back, and the row splits it like any other."""
        markers = self.request.thinking
        if markers is None:
            return chunk.text
        text = ""
        if chunk.reasoning:
            text = chunk.reasoning if self._in_reasoning else markers.start + chunk.reasoning
            self._in_reasoning = True
        if chunk.text:
            text += markers.end + chunk.text if self._in_reasoning else chunk.text
            self._in_reasoning = False
        return text

    def stream_over(self) -> None:
        """The stream came to its proper end; what follows the finish reason has been taken, too."""
        if self.ended:
            return
        assert self._end is not None
        self._check_repeated(len(self._text))
        self.row.usage = self._usage or RowUsage(
            len(self.request.prompt_token_ids), self._num_chunks
        )
        self.row.end(self._end)
        self._check_constraint()

    def cancel(self) -> None:
        """Tell what is known of the tokens of a row of text that ends early."""
        if not self._exact:
            self.row.usage = self._usage or RowUsage(
                len(self.request.prompt_token_ids), self._num_chunks
            )

    def fail(self, message: str, *, retryable: bool = False) -> None:
        """End it with this error, unless it has ended."""
        if not self.ended:
            self.cancel()
            self.row.end(FinishReason.ERROR, message, retryable=retryable)

    def failed(self) -> bool:
        """A request broke off. Whether to try again: not after `MAX_FAILURES` without any progress."""
        self._failures += 1
        return self._failures < MAX_FAILURES

    def _take_tokens(self, chunk: Chunk, num_open: int) -> None:
        if chunk.token_ids is None:
            if chunk.text:
                raise RowError("the upstream sent text without its token ids")
            return
        wanted = self.request.sampling.logprobs
        logprobs = chunk.logprobs or ()
        if wanted is not None and len(logprobs) != len(chunk.token_ids):
            raise RowError("the upstream tells no log-probabilities by token id")
        for at, token_id in enumerate(chunk.token_ids):
            if self._repeats(token_id):
                continue
            self._progressed()
            if self.row.token_ids:
                self._count_step(1, num_open)
            told = None
            if wanted is not None:
                told = TokenLogprobs(logprobs[at].logprob, logprobs[at].top[:wanted])
            self.row.append(token_id, told)
            self._num_repeated += 1
            if self.ended:
                return

    def _repeats(self, token_id: int) -> bool:
        known = self.row.token_ids
        if self._num_repeated == len(known):
            return False
        if token_id != known[self._num_repeated]:
            raise RowError(ANOTHER_TEXT, retryable=True)
        self._num_repeated += 1
        return True

    def _take_text(self, text: str) -> None:
        known = self._text[self._num_repeated : self._num_repeated + len(text)]
        if not text.startswith(known):
            raise RowError(ANOTHER_TEXT, retryable=True)
        self._num_repeated += len(known)
        new = text[len(known) :]
        if new:
            self._progressed()
            self._text += new
            self._num_repeated += len(new)
            self.row.append_text(new)

    def _check_constraint(self) -> None:
        """A text that has ended by itself must be what was asked for."""
        grammar = self.request.grammar
        if grammar is None or self.row.finish_reason is not FinishReason.STOP:
            return
        if not self.request.sampling.stop and not follows(grammar.constraint, self.row.text):
            field = grammar.constraint.field
            self.row.reject(
                f"{field}: the upstream's text does not follow it; it may not support that"
            )

    def _check_repeated(self, length: int) -> None:
        if self._num_repeated < length:
            raise RowError(
                "the stream was cut, and the upstream wrote a shorter text when it was asked again",
                retryable=True,
            )

    def _progressed(self) -> None:
        self._failures = 0
        self.refusals = 0

    def _count_step(self, steps: int, num_open: int) -> None:
        self.row.decode_steps += steps
        self.row.decode_rows += steps * num_open
