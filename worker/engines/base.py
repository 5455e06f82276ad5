"""The engine interface: what turns admitted requests into tokens, one step at a time.

An engine is synchronous and lives in one thread; it knows nothing of Redis, leases or jobs.
For each id that `Engine.admit` takes, exactly one `Finished` comes out of `Engine.step`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol

from millpond.messages import FinishReason, Message
from millpond.models.grammars import Grammar
from millpond.models.presets import Preset, ThinkingMarkers
from millpond.settings.types import CpuIsa

DType = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]
Weights = Literal["auto", "int8"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an engine is built from.

    ``model_folder`` is None for engines without weights. ``weights`` int8 rounds them to a byte
    each. ``cpu_isa`` is the most that compiled kernels use of the processor, and ``cache_dir`` keeps
    them. ``slots`` bounds the rows of the batch,
    ``kv_tokens`` the tokens of KV cache that all rows may reserve; None lets the engine choose.
    ``memory_share`` is the part of the free memory that this engine may plan with.
    ``max_batched_tokens`` is the most that is prefilled between two decode steps. Up to
    ``prefix_cache_tokens`` of keys and values are kept when their rows have ended, for rows that begin alike.
    Up to ``speculative_tokens`` are drafted for a row and verified in one step.
    """

    engine: str
    model_folder: Path | None
    preset: Preset
    dtype: DType = "auto"
    device: Device = "auto"
    slots: int = field(kw_only=True)
    kv_tokens: int | None = None
    memory_share: float = 1.0
    max_batched_tokens: int = 512
    prefix_cache_tokens: int = 32_768
    speculative_tokens: int = 16
    weights: Weights = "auto"
    cpu_isa: CpuIsa = "auto"
    cache_dir: Path = Path.home() / ".cache" / "millpond"
    adapters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one row is sampled and when it ends, with all defaults resolved.

    ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 and ``min_p`` 0 switch those filters
    off. Before ``min_tokens`` no token and no stop string ends the row. ``repetition_penalty`` is of
    prompt and output, the other two are of the output alone; ``logit_bias`` are pairs of a token id
    and what is added to its logit, each id once. ``logprobs`` is how many likeliest tokens to
    return with each generated one; None returns nothing. ``loop_repeats`` is how often a row may repeat
    itself, see `LoopFinder`; None lets it. ``max_reasoning_tokens`` is when a row that still reasons is
    made to answer.
    """

    max_tokens: int
    seed: int
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    max_reasoning_tokens: int | None = None
    loop_repeats: int | None = None
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A generated token's log-probability, and (token id, log-probability) of the likeliest tokens.

    They are the model's own: before temperature, biases, penalties and filters. ``top`` is sorted,
    the likeliest first, and has no more entries than the row asked for.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One row to generate: ``prompt_token_ids`` is not empty.

    ``predicted_tokens`` is how much output to expect, at least 1, and None for all of
    ``max_tokens``. It decides what is reserved for the row at first, and does not affect its result.
    ``messages`` is the conversation that the prompt was made from, for engines whose model is behind
    a template of its own; empty if the prompt is something else. ``grammar`` is what the text must
    follow, and ``thinking`` how the reasoning before it is marked, if the model reasons. Rows with
    different ``cache_salt`` share no keys and values. ``kept_token_ids`` were generated before, perhaps by
    another engine, with ``kept_logprobs`` if those are asked for: the row goes on behind them, as if it had
    generated them itself, and its first delta begins with them.
    """

    id: str
    prompt_token_ids: Sequence[int]
    sampling: Sampling
    predicted_tokens: int | None = None
    messages: tuple[Message, ...] = ()
    adapter: str | None = None
    grammar: Grammar | None = None
    thinking: ThinkingMarkers | None = None
    cache_salt: str = ""
    kept_token_ids: Sequence[int] = ()
    kept_logprobs: Sequence[TokenLogprobs] | None = None

    @property
    def expected_tokens(self) -> int:
        """Tokens of KV cache to reserve for it at first: prompt and expected output."""
        return len(self.prompt_token_ids) + expected_output(
            self.sampling.max_tokens, self.predicted_tokens, len(self.kept_token_ids)
        )


def expected_output(max_tokens: int, predicted_tokens: int | None, kept_tokens: int) -> int:
    """A row that has outgrown what was predicted of it is expected to grow by half."""
    if predicted_tokens is None:
        return max_tokens
    return min(max_tokens, max(1, predicted_tokens, kept_tokens + kept_tokens // 2))


@dataclass(frozen=True, slots=True)
class Capacity:
    """What can be admitted now: free rows, and free tokens of KV cache over all of them.

    Less than before while rows that were preempted wait for room, and for a time after memory ran
    out. An engine that runs nothing takes any row that fits it alone, whatever is free.
    """

    free_slots: int
    free_tokens: int


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the engine is; it ends up in receipts and in the worker registry.

    ``backend`` is what computes, on which depends how exactly a row can be reproduced: ``native`` and
    the name of its kernel set, ``torch`` and the device, ``remote`` or ``simulated``.
    """

    engine: str
    backend: str
    model: str
    dtype: str
    device: str
    slots: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class RowStats:
    """How a row was made. ``batch_rows`` is the mean batch over this row's decode steps, ``cached_tokens`` is
    how many of its prompt were not read, since the prefix cache had them. Of the ``drafted_tokens`` that were
    read ahead of the row, ``accepted_tokens`` were its next ones."""

    group_rows: int
    batch_rows: float
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class RejectionCode(StrEnum):
    """``NO_CAPACITY`` alone may be retried: there is no room at the moment."""

    INVALID = "invalid_request"
    DOES_NOT_FIT = "does_not_fit"
    NO_CAPACITY = "no_capacity"


@dataclass(frozen=True, slots=True)
class Rejection:
    """A request that was not admitted, and why; it will have no `Finished`."""

    id: str
    code: RejectionCode
    message: str


@dataclass(frozen=True, slots=True)
class RowUsage:
    """Tokens of a row that were counted elsewhere; ``cached`` are part of ``prompt``."""

    prompt: int
    completion: int
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of a row: whole characters, never past a stop string. May be empty text, new tokens.

    ``reasoning`` comes before the text. ``logprobs`` goes with ``token_ids``, if asked for. A row's deltas,
    joined, are the reasoning, the text, the tokens and the log-probabilities of its `Finished`.
    """

    id: str
    text: str
    token_ids: tuple[int, ...]
    reasoning: str = ""
    logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a row: all of its text and tokens. ``error`` is set exactly when reason is ERROR.

    ``token_ids`` holds every generated token, the one that ended the row included; ``text`` holds
    neither that token nor the stop string. ``logprobs`` goes with ``token_ids``, if asked for. Where
    the engine gets text instead of tokens, there are none, and ``usage`` is set. ``reasoning`` is what
    the model thought before, without its markers; ``reasoning_tokens`` of the tokens are its.
    ``retryable``: an error that another attempt, later or elsewhere, may not meet.
    """

    id: str
    reason: FinishReason
    text: str
    token_ids: tuple[int, ...]
    stats: RowStats
    error: str | None = None
    retryable: bool = False
    logprobs: tuple[TokenLogprobs, ...] | None = None
    usage: RowUsage | None = None
    reasoning: str = ""
    reasoning_tokens: int = 0

    @property
    def completion_tokens(self) -> int:
        return len(self.token_ids) if self.usage is None else self.usage.completion


EngineEvent = Delta | Finished


class EngineNotReadyError(Exception):
    """Something that the engine needs is missing: build it again later."""


class Engine(Protocol):
    @property
    def info(self) -> EngineInfo: ...

    @property
    def num_rows(self) -> int:
        """Rows admitted and not yet finished."""

    def warm_up(self) -> None:
        """Run a dummy request through every phase, so that the first real one is not slow."""

    def capacity(self) -> Capacity: ...

    def admit(self, requests: Sequence[GenerationRequest]) -> list[Rejection]:
        """Take one group, to be prefilled together. At most ``capacity().free_slots`` requests.

        A request that cannot run is rejected and touches no other. Raises nothing for bad requests.
        When rows need more memory than was predicted, the youngest waits and goes on later, and its
        tokens are those that it would have had anyway.
        """

    def cancel(self, ids: Sequence[str]) -> None:
        """End these rows at the next step with reason CANCELLED; unknown ids are ignored."""

    def step(self) -> list[EngineEvent]:
        """One forward pass: a chunk of a group's prefill, or a decode step of the batch.

        What goes wrong with single rows ends those rows. An exception means that the engine itself
        is broken: no further step is possible.
        """

    def close(self) -> None:
        """Free the model and the cache. The engine cannot be used afterwards."""
