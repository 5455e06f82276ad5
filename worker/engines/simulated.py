"""An engine without a model: deterministic text, a cost for each step, failures on demand.

It shares scheduling, finish conditions and text handling with the torch engine, so that the worker
is tested against the same behaviour at any speed, up to no cost at all.
"""

import hashlib
import os
import signal
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from millpond.messages import FinishReason
from millpond.models.tokenization import ByteTokenizer, Tokenizer
from worker.engines.base import (
    Capacity,
    EngineConfig,
    EngineEvent,
    EngineInfo,
    GenerationRequest,
    Rejection,
    RejectionCode,
    Sampling,
    TokenLogprobs,
)
from worker.engines.scheduling.matcher import Matcher
from worker.engines.scheduling.row import Row
from worker.engines.scheduling.scheduler import Scheduler

_WORDS = tuple(
    (
        b"a all and any are as at be but by can do each even find first five for four from get "
        b"give has have hence here heron how if in into is it its less let line make many mill "
        b"more most must next no not now odd of off on once one only or other our out over part "
        b"plus point pond prime prove reed river same see set seven show side since six so some "
        b"square step stone such sum take ten term than that the then there this three thus time "
        b"to total true two under up use value water we well what wheel when where which while "
        b"with yes zero"
    ).split()
)


@dataclass(frozen=True, slots=True)
class SimulatedCosts:
    """Seconds that a step takes. The defaults resemble a small model on one small GPU."""

    prefill_s_per_token: float = 2e-5
    decode_s_per_step: float = 5e-3
    decode_s_per_row: float = 1e-4

    @classmethod
    def free(cls) -> "SimulatedCosts":
        return cls(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class SimulatedFaults:
    """Failures, each off by default. A ``*_marker`` acts on rows whose prompt text contains it.

    ``reject_marker``: refused at admission. ``error_marker``: the row ends with an error at its
    first token. ``flaky_marker``: likewise, with a retryable error, and only the first time that this
    engine gets the prompt. ``loop_marker``: the row writes one word for ever. ``echo_marker``: the row
    writes what stands between two markers, as if a model could be made to say it. ``kill_marker``: the
    process dies of SIGKILL in the row's prefill, or, with ``kill_at_tokens``, when it has so many.
    ``hang_marker``: the row's prefill takes ``hang_s``
    seconds more. ``raise_at_step``: that step (from 1) raises RuntimeError instead of running.
    """

    reject_marker: str | None = None
    error_marker: str | None = None
    flaky_marker: str | None = None
    loop_marker: str | None = None
    echo_marker: str | None = None
    kill_marker: str | None = None
    kill_at_tokens: int | None = None
    hang_marker: str | None = None
    hang_s: float = 60.0
    raise_at_step: int | None = None


@dataclass(frozen=True, slots=True)
class SimulatedConfig:
    """``tokens_per_step`` makes large loads cheap: each decode step gives each row so many. ``write`` makes
    up the text of a row, from the prompt's tokens and the sampling, where it matters what is said."""

    costs: SimulatedCosts = SimulatedCosts()
    faults: SimulatedFaults = SimulatedFaults()
    tokens_per_step: int = 1
    write: Callable[[Sequence[int], Sampling], bytes] | None = None
    sleep: Callable[[float], None] = time.sleep


class SimulatedEngine:
    """Text of a row is a hash of its prompt tokens, and of its seed when temperature is not 0.

    There are no logits: what filters, biases or penalizes them is taken and changes nothing, and
    each token is certain, its log-probability 0 and no other beside it. Of a constrained row the text
    is what its grammar allows, and short.
    """

    def __init__(
        self,
        config: EngineConfig,
        tokenizer: Tokenizer | None = None,
        simulated: SimulatedConfig | None = None,
    ) -> None:
        self._tokenizer = tokenizer or ByteTokenizer()
        self._simulated = simulated or SimulatedConfig()
        context_tokens = config.preset.context_tokens
        kv_tokens = config.kv_tokens or config.slots * context_tokens
        self._scheduler = Scheduler(
            self._tokenizer,
            slots=config.slots,
            kv_tokens=kv_tokens,
            context_tokens=context_tokens,
            max_batched_tokens=config.max_batched_tokens,
            adapters=config.adapters,
        )
        self._planned: dict[str, bytes] = {}
        self._failed_once: set[tuple[int, ...]] = set()
        self._num_steps = 0
        self._info = EngineInfo(
            engine="simulated",
            backend="simulated",
            model=config.preset.name,
            dtype="none",
            device="none",
            slots=config.slots,
            context_tokens=context_tokens,
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def num_rows(self) -> int:
        return self._scheduler.num_rows

    def warm_up(self) -> None:
        """There is nothing to warm up."""

    def capacity(self) -> Capacity:
        return self._scheduler.capacity()

    def admit(self, requests: Sequence[GenerationRequest]) -> list[Rejection]:
        marker = self._simulated.faults.reject_marker
        rejections: list[Rejection] = []
        if marker is not None:
            refused = [r for r in requests if self._contains(r.prompt_token_ids, marker)]
            rejections = [
                Rejection(r.id, RejectionCode.INVALID, "refused by the simulated engine")
                for r in refused
            ]
            requests = [r for r in requests if r not in refused]
        return rejections + self._scheduler.admit(requests)

    def cancel(self, ids: Sequence[str]) -> None:
        self._scheduler.cancel(ids)

    def step(self) -> list[EngineEvent]:
        self._num_steps += 1
        if self._num_steps == self._simulated.faults.raise_at_step:
            raise RuntimeError(f"the simulated engine fails at step {self._num_steps}")
        scheduler = self._scheduler
        ended = scheduler.take_ended()
        scheduler.retire()
        if scheduler.begin_prefill():
            touched = self._prefill()
        else:
            scheduler.make_room(lambda row: None)
            touched = list(scheduler.running)
            self._decode(touched)
        scheduler.retire()
        for row in (*ended, *touched):
            if row.finish_reason is not None:
                self._planned.pop(row.id, None)
        return scheduler.collect((*ended, *touched))

    def close(self) -> None:
        self._planned.clear()

    def _prefill(self) -> list[Row]:
        """Read a chunk; the rows that it reads to their ends."""
        prefill = self._scheduler.prefill
        assert prefill is not None
        chunk = self._scheduler.next_chunk()
        self._spend(self._simulated.costs.prefill_s_per_token * chunk.num_tokens)
        done = [row for alike in prefill.ended(chunk).values() for row in alike]
        for row in done:
            self._act_out_faults(row)
        self._scheduler.start(done)
        for row in done:
            if row.finish_reason is None:
                self._planned[row.id] = self._plan(row)
                self._advance(row, 1)
        return done

    def _decode(self, rows: list[Row]) -> None:
        costs = self._simulated.costs
        if rows:
            self._spend(costs.decode_s_per_step + costs.decode_s_per_row * len(rows))
        for row in rows:
            row.decode_steps += 1
            row.decode_rows += len(rows)
            self._advance(row, self._simulated.tokens_per_step)

    def _advance(self, row: Row, count: int) -> None:
        plan = self._planned[row.id]
        done = len(row.token_ids)
        for position in range(done, done + count):
            token_id = plan[position] if position < len(plan) else ByteTokenizer.EOS
            if row.forced_token_id is not None:
                token_id = row.forced_token_id
            elif row.matcher is not None:
                row.matcher.compute()
                if row.matcher.error is not None:
                    row.fail_constraint()
                    return
                token_id = _allowed(row.matcher, token_id)
            row.append(token_id, _certain(token_id, row.sampling.logprobs))
            if len(row.token_ids) == self._simulated.faults.kill_at_tokens:
                self._kill_for(row)
            if row.finish_reason is not None:
                return

    def _spend(self, seconds: float) -> None:
        if seconds > 0:
            self._simulated.sleep(seconds)

    def _act_out_faults(self, row: Row) -> None:
        faults = self._simulated.faults
        prompt = row.prompt_token_ids
        if faults.kill_at_tokens is None:
            self._kill_for(row)
        if faults.hang_marker is not None and self._contains(prompt, faults.hang_marker):
            self._simulated.sleep(faults.hang_s)
        if faults.error_marker is not None and self._contains(prompt, faults.error_marker):
            row.end(FinishReason.ERROR, "the simulated engine fails this row")
        if faults.flaky_marker is not None and self._contains(prompt, faults.flaky_marker):
            key = tuple(prompt)
            if key not in self._failed_once:
                self._failed_once.add(key)
                row.end(FinishReason.ERROR, "the simulated engine stumbles", retryable=True)

    def _kill_for(self, row: Row) -> None:
        marker = self._simulated.faults.kill_marker
        if marker is not None and self._contains(row.prompt_token_ids, marker):
            os.kill(os.getpid(), signal.SIGKILL)

    def _plan(self, row: Row) -> bytes:
        faults = self._simulated.faults
        prompt = row.prompt_token_ids
        if faults.loop_marker is not None and self._contains(prompt, faults.loop_marker):
            return b"mill " * row.sampling.max_tokens
        if faults.echo_marker is not None and self._contains(prompt, faults.echo_marker):
            return self._tokenizer.decode(list(prompt)).split(faults.echo_marker)[1].encode()
        if self._simulated.write is not None:
            return self._simulated.write(prompt, row.sampling)
        return _plan(row)

    def _contains(self, prompt_token_ids: Iterable[int], marker: str) -> bool:
        return marker in self._tokenizer.decode(list(prompt_token_ids))


# Whatever ends something goes first, so that the text ends soon.
_ENDINGS: tuple[int, ...] = (ByteTokenizer.EOS, *b'"}]')
_BLANKS = frozenset(b" \n\r\t")


def _allowed(matcher: Matcher, planned: int) -> int:
    """An ending if there is one, else the first allowed token from the planned one on."""
    for token_id in _ENDINGS:
        if matcher.allows(token_id):
            return token_id
    ring = [(planned + i) % ByteTokenizer.vocab_size for i in range(ByteTokenizer.vocab_size)]
    allowed: list[int] = [token_id for token_id in ring if matcher.allows(token_id)]
    chosen: int = next((t for t in allowed if t not in _BLANKS), allowed[0])
    return chosen


def _certain(token_id: int, count: int | None) -> TokenLogprobs | None:
    return None if count is None else TokenLogprobs(0.0, ((token_id, 0.0),)[:count])


def _plan(row: Row) -> bytes:
    """All bytes that the row would write, without the end token; ASCII words and spaces.

    A row that heeds the end token stops somewhere between a quarter and all of ``max_tokens``.
    """
    sampling = row.sampling
    seed = sampling.seed if sampling.temperature > 0 else 0
    source = hashlib.shake_256(array("q", (seed, *row.prompt_token_ids)).tobytes())
    source.update((row.adapter or "").encode())
    length = sampling.max_tokens
    if not sampling.ignore_eos:
        draw = int.from_bytes(source.digest(4))
        shortest = max(1, sampling.min_tokens, length // 4)
        length = shortest + draw % (length - shortest + 1)
    # A word and its space are at least two bytes.
    choices = source.digest(4 + length // 2 + 1)[4:]
    text = b" ".join([_WORDS[choice % len(_WORDS)] for choice in choices])
    return text[:length]
