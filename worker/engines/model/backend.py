"""A backend: the KV cache, and the runner that fills and reads it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch

from millpond.models.memory_plan import PREFILL_TOKENS
from millpond.models.tokenization import ByteTokenizer
from worker.engines.base import GenerationRequest, Sampling
from worker.engines.model.loading import LoadedModel
from worker.engines.native.byte_pool import BytePool
from worker.engines.native.runner import NativeRunner
from worker.engines.native.sampler import NativeSampler
from worker.engines.paging.pages import PagedCache
from worker.engines.sampling.sampling import Output, Sampler, torch_sampler
from worker.engines.scheduling.prefill import Chunk, cut_chunks
from worker.engines.scheduling.row import Row
from worker.engines.torch.gathered import GatheredReading
from worker.engines.torch.graphs import CudaRecorder
from worker.engines.torch.kv_pool import KVPool
from worker.engines.torch.model_runner import ModelRunner
from worker.engines.torch.varlen import varlen_attention


class Cache(Protocol):
    @property
    def allocated_tokens(self) -> int: ...

    @property
    def shared_tokens(self) -> int:
        """Of what rows have, what they have in common: counted once for each row but the first."""

    def allocate(self, rows: list[Row]) -> None:
        """Allocate blocks for all of these rows, or, out of memory, for none."""

    def share(self, rows: Iterable[Row]) -> set[str]:
        """Let rows that are about to be read go on behind what others have read. Returns the ids of those
        that should wait, because another of these rows reads the same tokens now."""

    def given_tokens(self, row: Row) -> int:
        """How many of the row's tokens it did not have to read."""

    def offer(self, rows: Iterable[Row]) -> None:
        """These rows have been read further: others may share what was read."""

    def copy(self, source: Row, row: Row) -> None:
        """Copy the keys and values of another row with the same tokens, which has read them."""

    def allocate_behind(self, source: Row, row: Row) -> None:
        """Allocate with the first page of another row in every place of what this one counts as read, a
        whole number of pages: so the check at load looks far behind, without reading so much."""

    def make_room(self) -> None:
        """Make room for each row's newest token."""

    def free(self, row: Row, *, scrub: bool = False) -> None:
        """Free the row; unknown rows are ignored. ``scrub``: its values may not be finite."""

    def trim(self) -> None:
        """Give unused memory back."""

    def clear(self) -> None: ...


class Runner(Protocol):
    """With ``logits`` the output has them for all rows, else for those that need them."""

    def read(self, chunk: Chunk, *, logits: bool = False) -> Output:
        """One forward pass over the chunk. Returns the output of the rows that it finishes reading."""

    def decode(self, rows: Sequence[Row], *, logits: bool = False) -> tuple[list[Row], Output]:
        """Read the newest token of each of these rows; the output names them in its own order. Other
        rows may have places in the cache, being prefilled."""

    def warm_up(self) -> None:
        """What is done once, before rows are decoded."""

    def trim(self) -> None:
        """Give back memory that only saves time."""


class Verifier(Runner, Protocol):
    """A runner that can read several tokens of a row in one decode step."""

    def verify(self, rows: Sequence[Row], drafts: Mapping[str, Sequence[int]]) -> Output:
        """Read the newest token of each row and its draft, found by its id, for which it has room in its
        reservation. The output has a place for each token read, row by row: what comes after it. What is
        read of a draft beyond the row's tokens is overwritten by what comes in its place."""


def prefill(
    runner: Runner,
    rows: Iterable[Row],
    *,
    logits: bool = False,
    chunk_tokens: int = PREFILL_TOKENS,
) -> Output:
    """Read all tokens of these rows, which are allocated already."""
    chunks = cut_chunks(rows, chunk_tokens)
    if len(chunks) == 1:
        return runner.read(chunks[0], logits=logits)
    # Copies, for the next pass may overwrite what one says.
    return Output.joined([runner.read(chunk, logits=logits).copy() for chunk in chunks])


@torch.inference_mode()
def build_backend(
    loaded: LoadedModel,
    *,
    kv_tokens: int,
    slots: int,
    prefix_cache_tokens: int = 0,
    prefix: Sequence[int] = (),
) -> tuple[Cache, Runner]:
    """A cache for so many tokens and rows, and its runner.

    Most prompts begin with ``prefix``: it is read once, now, and the rows share it.
    """
    sizes = {
        "kv_tokens": kv_tokens,
        "slots": slots,
        "prefix_tokens": len(prefix),
        "prefix_cache_tokens": prefix_cache_tokens,
    }
    cache: PagedCache[BytePool] | PagedCache[KVPool]
    runner: Runner
    if loaded.native is not None:
        cache = PagedCache(loaded.native.pool, **sizes)
        runner = NativeRunner(loaded.native.model, loaded.native.library, cache)
    else:
        layout = loaded.layout
        cache = PagedCache(layout.pool, **sizes, page_tokens=layout.page_tokens)
        runner = ModelRunner(
            loaded.model,
            loaded.windows,
            cache,
            GatheredReading if loaded.flash is None else varlen_attention(loaded.flash),
            loaded.adapters,
            record=None if loaded.flash is None else CudaRecorder(),
            slots=slots,
            row_tokens=min(kv_tokens, loaded.context_tokens),
        )
    if prefix:
        request = GenerationRequest("prefix", prefix, Sampling(max_tokens=1, seed=0))
        row = Row(request, ByteTokenizer())
        cache.allocate([row])
        prefill(runner, [row])
        cache.keep_prefix(row)
    return cache, runner


def build_sampler(loaded: LoadedModel) -> Sampler:
    return torch_sampler if loaded.native is None else NativeSampler(loaded.native.library)
