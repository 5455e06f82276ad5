"""The engine interface: what turns admitted requests into tokens, one step at a time.

An engine is synchronous and lives in one thread; it knows nothing of Redis, leases or jobs.
For each id that `Engine.admit` takes, exactly one `Finished` comes out of `Engine.step`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from millpond.messages import FinishReason


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one row is sampled and when it ends. Nothing here is optional: defaults are resolved.

    ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 and ``min_p`` 0 switch those filters off.
    """

    max_tokens: int
    seed: int
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One row to generate: ``prompt_token_ids`` is not empty."""

    id: str
    prompt_token_ids: Sequence[int]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Capacity:
    """What can be admitted now: free rows, and free tokens of KV cache over all of them."""

    free_slots: int
    free_tokens: int


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the engine is; it ends up in receipts and in the worker registry."""

    engine: str
    model: str
    dtype: str
    device: str
    slots: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class RowStats:
    """How a row was made. ``batch_rows`` is the mean batch over this row's decode steps."""

    group_rows: int
    padding_share: float
    batch_rows: float


@dataclass(frozen=True, slots=True)
class Rejection:
    """A request that was not admitted, and why; it will have no `Finished`."""

    id: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of a row: whole characters, never past a stop string. May be empty text, new tokens."""

    id: str
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a row: all of its text and tokens. ``error`` is set exactly when reason is ERROR."""

    id: str
    reason: FinishReason
    text: str
    token_ids: tuple[int, ...]
    stats: RowStats
    error: str | None = None


EngineEvent = Delta | Finished


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
        """

    def cancel(self, ids: Sequence[str]) -> None:
        """End these rows at the next step with reason CANCELLED; unknown ids are ignored."""

    def step(self) -> list[EngineEvent]:
        """One forward pass: the prefill of a waiting group, else a decode step of the batch."""

    def close(self) -> None:
        """Free the model and the cache. The engine cannot be used after."""
