"""What a card does, as far as a CPU can tell: graphs, and the calls of torch's flash kernel.

A stand-in has the kernel's signature and checks what the kernel checks; what CUDA captures and replays is
computed again from the same tensors. See test_gpu.py for the rest.
"""

import inspect
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.varlen import varlen_attn

from millpond.messages import FinishReason
from millpond.models.memory_plan import CARD_PAGE_TOKENS
from millpond.models.tokenization import ByteTokenizer
from tests.integration import test_exactness as exact
from tests.integration.test_adapters import EVERYTHING, write_adapter
from tests.integration.test_memory import (
    FAMILIES,
    arrivals,
    check_tokens,
    drain,
    serve,
)
from worker.engines.adapters.reading import read_adapters
from worker.engines.base import EngineConfig, GenerationRequest, Sampling
from worker.engines.model import backend, loading, self_check
from worker.engines.model.engine import TransformersEngine
from worker.engines.model.loading import adopt, with_adapters
from worker.engines.torch import graphs, memory
from worker.engines.torch.fusing import fuse_all
from worker.engines.torch.varlen import find_kernel


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These models are too small for two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Recorder:
    """Counts captures and replays, and fails the captures whose numbers, from 1, are given."""

    def __init__(
        self, failing: tuple[int, ...] = (), error: type[Exception] = RuntimeError
    ) -> None:
        self._failing = failing
        self._error = error
        self.captures = 0
        self.replays = 0

    def __call__(self, compute: graphs.Compute) -> graphs.Compute:
        self.captures += 1
        compute()  # as the warm-up before a capture does
        if self.captures in self._failing:
            raise self._error("not in a capture")

        def again() -> None:
            self.replays += 1
            compute()

        return again


class Kernel:
    """Attention over pages, in float32, by nothing but the tensors that the kernel gets."""

    def __init__(self) -> None:
        self.calls = 0
        self.most_queries: set[int] = set()

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor | None,
        max_q: int,
        max_k: int,
        **options: Any,
    ) -> torch.Tensor:
        self.calls += 1
        self.most_queries.add(max_q)
        bound = inspect.signature(varlen_attn).bind(
            query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **options
        )
        lengths, table = options["seqused_k"], options["block_table"]
        check_call(**bound.arguments)
        left, right = options["window_size"]
        scale = query.shape[-1] ** -0.5 if options["scale"] is None else options["scale"]
        group = query.shape[1] // key.shape[2]
        out = torch.empty_like(query)
        for row, pages in enumerate(table.tolist()):
            start, stop = int(cu_seq_q[row]), int(cu_seq_q[row + 1])
            length = int(lengths[row])
            assert stop - start <= max_q
            assert length <= max_k
            used = pages[: -(-length // key.shape[1])]
            keys, values = (
                t[used].flatten(0, 1)[:length].repeat_interleave(group, 1) for t in (key, value)
            )
            scores = torch.einsum("qhd,khd->hqk", query[start:stop], keys) * scale
            place = torch.arange(length)
            own = torch.arange(length - (stop - start), length)[:, None]
            seen = torch.ones(len(own), length, dtype=torch.bool)
            if right >= 0:
                seen &= place <= own + right
            if left >= 0:
                seen &= place >= own - left
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            out[start:stop] = torch.einsum("hqk,khd->qhd", weights, values)
        return out


def check_call(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: torch.Tensor,
    block_table: torch.Tensor,
    num_splits: int,
) -> None:
    """What FlashAttention 2 in torch refuses (`mha_varlen_fwd` in flash_api.cpp)."""
    num_rows = len(cu_seq_q) - 1
    for numbers in (cu_seq_q, cu_seq_k, seqused_k, block_table):
        assert numbers.dtype is torch.int32
        assert numbers.is_contiguous()
    assert query.shape[1:] == (query.shape[1], key.shape[3])
    assert key.shape == value.shape
    assert key.shape[1] == CARD_PAGE_TOKENS
    assert {t.stride(-1) for t in (query, key, value)} == {1}
    assert cu_seq_q.shape == cu_seq_k.shape
    assert seqused_k.shape == (num_rows,)
    assert block_table.shape[0] == num_rows
    assert int(block_table.max()) < len(key)
    assert enable_gqa == (query.shape[1] != key.shape[2])
    assert num_splits == 1
    assert cu_seq_k.diff().equal(seqused_k)


def as_on_a_card(
    model: Any,
    slots: int,
    recorder: Recorder,
    *,
    kernel: Kernel | None = None,
    adapters: dict[str, str] | None = None,
    kv_tokens: int | None = None,
    max_batched_tokens: int = 512,
) -> TransformersEngine:
    loaded = adopt(model)
    layout = replace(loaded.layout, page_tokens=CARD_PAGE_TOKENS)
    found = read_adapters(model, adapters or {})
    fuse_all(model)
    loaded = with_adapters(replace(loaded, layout=layout, flash=kernel or Kernel()), found)
    config = EngineConfig(
        "transformers",
        None,
        exact.PRESET,
        slots=slots,
        kv_tokens=kv_tokens or slots * exact.CONTEXT_TOKENS,
        max_batched_tokens=max_batched_tokens,
        adapters=adapters or {},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "CudaRecorder", lambda: recorder)
        engine = TransformersEngine(loaded, config, ByteTokenizer())
    engine._runner.warm_up()
    return engine


@pytest.mark.parametrize("family", ["llama", "qwen2-windows", "gemma3", "phi"])
def test_rows_come_and_go_and_graphs_stay(family: str) -> None:
    torch.manual_seed(11)
    model = FAMILIES[family]().eval()
    rows = arrivals(random.Random(family), 8, 300)
    expected = {
        a.request.id: exact.generate_alone(
            model, list(a.request.prompt_token_ids), a.request.sampling.max_tokens
        )
        for a in rows
    }
    recorder, kernel = Recorder(), Kernel()
    engine = as_on_a_card(model, 6, recorder, kernel=kernel, kv_tokens=700, max_batched_tokens=100)
    finished, _ = serve(engine, rows)
    for a in rows:
        end = finished[a.request.id]
        alone = expected[a.request.id]
        if end.reason is FinishReason.CANCELLED:
            alone = alone[: len(end.token_ids)]
        check_tokens(model, a.request, list(end.token_ids), alone)
    assert recorder.captures == len(graphs.graph_sizes(6)) == 4
    assert recorder.replays > 50
    assert len(kernel.most_queries) > 5


def some_rows(count: int = 3, max_tokens: int = 30) -> list[GenerationRequest]:
    sampling = Sampling(max_tokens=max_tokens, seed=0, ignore_eos=True)
    return [GenerationRequest(f"r{i}", [i + 1] * (i + 2), sampling) for i in range(count)]


def test_every_number_of_rows_has_a_graph() -> None:
    assert graphs.graph_sizes(1) == [1]
    assert graphs.graph_sizes(64) == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]
    assert graphs.graph_sizes(13) == [1, 2, 4, 8, 13]


def test_adapters_share_a_graph(tmp_path: Any) -> None:
    model = exact.build_model("llama")
    folder = write_adapter(tmp_path / "a", model, EVERYTHING, 4, seed=1)
    folders = {"a": str(folder), "b": str(folder)}
    rows = [
        replace(row, adapter=name) for row, name in zip(some_rows(), (None, "a", "b"), strict=True)
    ]
    expected = [exact.generate_alone(model, list(rows[0].prompt_token_ids), 30)]
    recorder = Recorder()
    engine = as_on_a_card(model, 4, recorder, adapters=folders)
    assert engine.admit(rows) == []
    together = drain(engine)
    assert recorder.replays == 29
    assert engine.admit([replace(rows[1], adapter=None), replace(rows[2], adapter="a")]) == []
    apart = drain(engine)
    assert list(together["r0"].token_ids) == expected[0]
    assert together["r2"].token_ids == apart["r2"].token_ids
    assert together["r1"].token_ids != apart["r1"].token_ids


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_what_cannot_be_captured_is_computed(
    error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    model = exact.build_model("llama")
    plain = exact.build_engine(model, slots=4)
    assert plain.admit(some_rows()) == []
    expected = drain(plain)
    recorder = Recorder(failing=(2,), error=error)
    engine = as_on_a_card(model, 4, recorder)
    assert engine.admit(some_rows()) == []
    finished = drain(engine)
    assert {i: f.token_ids for i, f in finished.items()} == {
        i: f.token_ids for i, f in expected.items()
    }
    assert (recorder.captures, recorder.replays) == (2, 0)
    assert "decode steps are computed without graphs: not in a capture" in caplog.text


def test_a_graph_that_is_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture goes wrong without an error: here it keeps the tokens that it was captured with."""
    loaded = adopt(exact.build_model("llama"))
    layout = replace(loaded.layout, page_tokens=CARD_PAGE_TOKENS)
    loaded = replace(loaded, layout=layout, flash=Kernel())
    monkeypatch.setattr(backend, "CudaRecorder", lambda: Recorder())
    self_check.check(loaded, exact.PRESET, ByteTokenizer())
    monkeypatch.setattr(
        backend, "CudaRecorder", lambda: lambda compute: compute() or (lambda: None)
    )
    with pytest.raises(loading.UnsupportedModelError, match="in decode"):
        self_check.check(loaded, exact.PRESET, ByteTokenizer())


def test_the_kernels_operator_takes_the_call() -> None:
    """By its shapes alone, as tensors of a card that is not here."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        pages = torch.empty((9, CARD_PAGE_TOKENS, 2, 64), dtype=torch.bfloat16, device="cuda")
        query = torch.empty((5, 6, 64), dtype=torch.bfloat16, device="cuda")
        starts = torch.empty(3, dtype=torch.int32, device="cuda")
        lengths = torch.empty(2, dtype=torch.int32, device="cuda")
        table = torch.empty((2, 4), dtype=torch.int32, device="cuda")
        out = torch.ops.aten._flash_attention_forward(
            query, pages, pages, starts, starts, 4, 1000, 0.0, True, False,
            scale=0.1, window_size_left=-1, window_size_right=0,
            seqused_k=lengths, block_table=table, num_splits=1,
        )[0]  # fmt: skip
        also = varlen_attn(
            query, pages, pages, starts, starts, 4, 1000,
            scale=0.1, window_size=(-1, 0), enable_gqa=True,
            seqused_k=lengths, block_table=table, num_splits=1,
        )  # fmt: skip
    assert out.shape == also.shape == query.shape
    assert (out.device.type, also.device.type) == ("cuda", "cuda")


# -- what is decided for CUDA without having it


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "found"),
    [
        ((7, 5), torch.float16, 64, False),
        ((8, 0), torch.bfloat16, 128, True),
        ((9, 0), torch.float16, 256, True),
        ((9, 0), torch.float32, 64, False),
        ((8, 6), torch.bfloat16, 320, False),
    ],
)
def test_the_flash_kernel_is_taken_where_it_runs(
    capability: tuple[int, int],
    dtype: torch.dtype,
    head_dim: int,
    found: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    kernel = find_kernel(head_dim, dtype, torch.device("cuda"))
    assert kernel is (varlen_attn if found else None)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 0), "float16"), ((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")],
)
def test_the_dtype_is_what_the_card_computes_natively(
    capability: tuple[int, int], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A T4, 7.5, says that it supports bfloat16, and emulates it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    chosen = loading.choose_dtype("auto", torch.device("cuda"))
    assert chosen is getattr(torch, dtype)


def test_what_the_card_has_free_is_what_is_planned_with(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 1024**3
    card = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * gib)
    for free, share, room in ((10, 1.0, 7.6), (2, 1.0, 0), (10, 0.5, 3.8), (10, 0.1, 0)):
        told = (free * gib, 16 * gib)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, told=told: told)
        assert memory._room_bytes(card, share) == pytest.approx(room * gib, abs=2)
