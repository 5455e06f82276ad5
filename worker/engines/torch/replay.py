"""The decode step, captured once as a CUDA graph and replayed: small models spend their time
launching kernels.

A capture covers whole buckets with their empty slots, so rows join and leave without a new one.
After a bucket appears, vanishes or is resized, steps are computed as usual until the buckets have
been stable for a while, since a capture takes as long as many steps.
"""

import logging
from collections.abc import Callable, Sequence

import torch

from worker.engines.sampling.transfer import to_device
from worker.engines.scheduling.row import Row
from worker.engines.torch.attention import DecodePlan, Plan
from worker.engines.torch.kv_cache import Bucket, KVCache
from worker.engines.torch.memory import is_out_of_memory

# Steps for which the buckets must have stood; a recording costs about as many.
STEADY_STEPS = 16
# There was no memory for a recording: the steps before it is tried again.
REST_STEPS = 1024
# Replays that are compared with the step itself, for a capture goes wrong without an error: one with the
# inputs that were captured, one with others.
_CHECKED_RUNS = 2

Compute = Callable[[], torch.Tensor]
Recorder = Callable[[Compute], Compute]
Forward = Callable[[torch.Tensor, torch.Tensor, Plan], torch.Tensor]

_log = logging.getLogger(__name__)


class DecodeReplay:
    """Owns the captured step. ``forward`` takes token ids and positions, both ``[rows, 1]``, and a plan,
    and returns logits ``[rows, vocab]``; ``record`` makes what replays a computation."""

    def __init__(
        self,
        cache: KVCache,
        windows: Sequence[int | None],
        forward: Forward,
        record: Recorder,
    ) -> None:
        self._cache = cache
        self._windows = windows
        self._forward = forward
        self._record = record
        self._stands: list[tuple[int, int]] = []
        self._steady_steps = 0
        self._step: _RecordedStep | None = None
        self._broken = False
        self._rest_steps = 0

    def decode(self) -> tuple[list[Row], torch.Tensor] | None:
        """The rows and their logits, which the next call overwrites; None to compute as usual."""
        buckets = self._cache.buckets()
        steady = self._steady(buckets)
        if self._rest_steps > 0:
            self._rest_steps -= 1
            return None
        if self._broken or not steady:
            return None
        return self._try(buckets)

    def drop(self) -> None:
        """Free the memory of the captured step."""
        self._step = None
        self._stands = []

    def _steady(self, buckets: list[Bucket]) -> bool:
        stands = [(bucket.length, bucket.version) for bucket in buckets]
        if stands != self._stands:
            self.drop()
            self._stands, self._steady_steps = stands, 0
        self._steady_steps += 1
        return self._steady_steps > STEADY_STEPS

    def _try(self, buckets: list[Bucket]) -> tuple[list[Row], torch.Tensor] | None:
        """Replay, after a capture if there is none yet."""
        try:
            if self._step is None:
                device = self._cache.layout.device
                self._step = _RecordedStep(
                    buckets, self._windows, self._forward, self._record, device
                )
            return self._step.run()
        except RuntimeError as error:
            self._step = None
            if is_out_of_memory(error):
                # The step itself needs less, and is what tells whether the rows fit.
                self._rest_steps = REST_STEPS
            else:
                _log.warning("decode steps are not recorded: %s", error)
                self._broken = True
            return None


class _RecordedStep:
    """One captured step, with the tensors of its inputs and its logits.

    Raises RuntimeError when it cannot be captured, or its replay differs from the step.
    """

    def __init__(
        self,
        buckets: list[Bucket],
        windows: Sequence[int | None],
        forward: Forward,
        record: Recorder,
        device: torch.device,
    ) -> None:
        self._buckets = buckets
        self._device = device
        num_slots = sum(bucket.num_slots for bucket in buckets)
        # Token ids, then positions. An empty slot reads token 0 at position 0, over nothing.
        self._inputs = torch.zeros((2, num_slots), dtype=torch.int64, device=device)
        token_ids, positions = self._inputs

        def compute() -> torch.Tensor:
            plan = DecodePlan.of_whole_buckets(buckets, positions, windows)
            return forward(token_ids[:, None], positions[:, None], plan)

        # The capture runs once for real and writes the KV cache, so it needs the rows' own inputs.
        self._fill()
        self._compute = compute
        self._replay = record(compute)
        self._checks_left = _CHECKED_RUNS

    def run(self) -> tuple[list[Row], torch.Tensor]:
        self._fill()
        logits = self._checked_replay() if self._checks_left else self._replay()
        rows: list[Row] = []
        found: list[torch.Tensor] = []
        start = 0
        for bucket in self._buckets:
            rows += bucket.rows
            found.append(logits[start : start + len(bucket.rows)])
            start += bucket.num_slots
        return rows, found[0] if len(found) == 1 else torch.cat(found)

    def _checked_replay(self) -> torch.Tensor:
        self._checks_left -= 1
        expected = self._compute()
        logits = self._replay()
        if not torch.allclose(expected, logits, rtol=0.02, atol=0.05, equal_nan=True):
            raise RuntimeError("a replay gives other logits than the step itself")
        return logits

    def _fill(self) -> None:
        token_ids: list[int] = []
        positions: list[int] = []
        for bucket in self._buckets:
            empty = [0] * (bucket.num_slots - len(bucket.rows))
            token_ids += [row.next_token_id for row in bucket.rows] + empty
            positions += [row.read_tokens for row in bucket.rows] + empty
        self._inputs.copy_(to_device([token_ids, positions], self._device), non_blocking=True)


def record_cuda_graph(compute: Compute) -> Compute:
    """Run once to warm up, capture, and replay from then on. What ``compute`` returns is overwritten
    by each replay. Raises RuntimeError when ``compute`` does what a graph cannot, such as to wait."""
    here = torch.cuda.current_stream()
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        compute()
    here.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # A capture that fails leaves its own stream behind as the current one.
    with torch.cuda.stream(here), torch.cuda.graph(graph):
        result = compute()

    def replay() -> torch.Tensor:
        graph.replay()
        return result

    return replay
