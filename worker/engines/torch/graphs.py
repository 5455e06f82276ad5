"""Decode steps as CUDA graphs, one for each of some numbers of rows: small models spend their time launching
kernels.

All are captured before the first request, in one memory pool, the largest first, so that the others fit
into its memory. A step takes the smallest graph that holds its rows; the places left over read token 0 of
the spare page.
"""

import logging
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from worker.engines.sampling.transfer import array_to_device
from worker.engines.torch.batch import Batch, Shape, decode_shape
from worker.engines.torch.memory import OutOfMemory, attempt

Compute = Callable[[], None]
# Makes what replays a computation on memory that stays where it is.
Recorder = Callable[[Compute], Compute]

_log = logging.getLogger(__name__)


def graph_sizes(slots: int) -> list[int]:
    """1, 2, 4, 8, then every eighth, and the slots."""
    return sorted({*(n for n in (1, 2, 4) if n < slots), *range(8, slots, 8), slots})


class DecodeGraphs:
    """Owns the graphs, their inputs and the logits, which each step overwrites.

    ``forward`` computes a batch's logits; ``fillers`` are the numbers of a shape without any row.
    """

    def __init__(
        self,
        forward: Callable[[Batch], torch.Tensor],
        record: Recorder,
        fillers: Callable[[Shape], npt.NDArray[np.int32]],
        *,
        slots: int,
        pages: int,
        page_tokens: int,
        device: torch.device,
    ) -> None:
        self._forward = forward
        self._record = record
        self._fillers = fillers
        self._device = device
        self._shapes = [decode_shape(rows, pages, page_tokens) for rows in graph_sizes(slots)]
        self._inputs: dict[int, torch.Tensor] = {}
        self._replays: dict[int, Compute] = {}
        self._logits: torch.Tensor | None = None

    def capture(self) -> None:
        """Once, before rows are decoded. Where a step cannot be captured, none is replayed."""
        try:
            failed = attempt(self._capture_all)
        except RuntimeError as error:
            self._give_up(str(error))
        else:
            if isinstance(failed, OutOfMemory):
                self._give_up(failed.message)

    def shape_for(self, rows: int) -> Shape | None:
        """That of the graph which replays a step of so many rows; None if there is none."""
        return next((s for s in self._shapes if s.rows >= rows and s.rows in self._replays), None)

    def run(self, shape: Shape, numbers: npt.NDArray[np.int32]) -> torch.Tensor:
        """The logits of the graph's rows."""
        assert self._logits is not None
        self._inputs[shape.rows].copy_(array_to_device(numbers, self._device), non_blocking=True)
        self._replays[shape.rows]()
        return self._logits[: shape.rows]

    def _capture_all(self) -> None:
        for shape in reversed(self._shapes):
            self._capture(shape)

    def _capture(self, shape: Shape) -> None:
        inputs = array_to_device(self._fillers(shape), self._device)

        def compute() -> None:
            logits = self._forward(Batch(shape, inputs))
            if self._logits is None:
                self._logits = torch.empty_like(logits)
            self._logits[: shape.rows].copy_(logits)

        if self._logits is None:
            compute()  # outside of the graphs' pool, which would give its memory to the next
        self._inputs[shape.rows] = inputs
        self._replays[shape.rows] = self._record(compute)

    def _give_up(self, why: str) -> None:
        self._inputs.clear()
        self._replays.clear()
        self._logits = None
        _log.warning("decode steps are computed without graphs: %s", why)


class CudaRecorder:
    """Captures on one stream of its own, in one memory pool."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Compute) -> Compute:
        """Run once to warm up, then capture. Raises RuntimeError when ``compute`` does what a graph cannot,
        such as to wait."""
        here = torch.cuda.current_stream()
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            compute()
        here.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # A capture that fails leaves its own stream behind as the current one.
        with (
            torch.cuda.stream(here),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream),
        ):
            compute()
        replay: Compute = graph.replay
        return replay
