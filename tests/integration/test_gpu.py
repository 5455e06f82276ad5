"""On a CUDA device: exactness, graphs, one wait a step, and memory: within the plan, and run out.

Float32 takes `gathered`, half precision from Ampere on takes torch's flash kernel and the graphs.
"""

import random
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from millpond.models.tokenization import ByteTokenizer
from tests.integration import test_exactness as exact
from tests.integration.faults import failing_allocations
from tests.integration.test_adapters import EVERYTHING, write_adapter
from tests.integration.test_memory import FAMILIES, arrivals, check_tokens, drain, serve
from worker.engines.adapters.reading import read_adapters
from worker.engines.base import EngineConfig, GenerationRequest, Sampling
from worker.engines.model import self_check
from worker.engines.model.engine import TransformersEngine
from worker.engines.model.loading import adopt, with_adapters
from worker.engines.torch import graphs
from worker.engines.torch.fusing import fuse_linears

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """Float32 that is float32, and the memory of one test given back before the next."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before
    torch.cuda.empty_cache()


def model_on_card(family: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(11)
    return FAMILIES[family]().eval().to("cuda", dtype)


def generate_alone(model: Any, prompt: list[int], max_tokens: int) -> list[int]:
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        ids = torch.tensor([prompt], device="cuda")
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False)
    return [int(t) for t in out[0, len(prompt) :]]


def with_graphs(engine: TransformersEngine) -> TransformersEngine:
    engine._runner.warm_up()
    runner: Any = engine._runner
    assert runner.graphs is not None, "this card has no flash kernel"
    assert runner.graphs.shape_for(1) is not None, "nothing was captured"
    return engine


def rows_of(count: int, max_tokens: int, **sampling: Any) -> list[GenerationRequest]:
    values = {"ignore_eos": True, **sampling}
    return [
        GenerationRequest(f"r{i}", [i % 250 + 1] * (i % 40 + 2), Sampling(max_tokens, i, **values))
        for i in range(count)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_equal_generate_alone(family: str) -> None:
    model = model_on_card(family)
    rows = arrivals(random.Random(family), 14, 400)
    expected = {
        a.request.id: generate_alone(
            model, list(a.request.prompt_token_ids), a.request.sampling.max_tokens
        )
        for a in rows
    }
    finished, _ = serve(exact.build_engine(model, slots=6, kv_tokens=700), rows)
    for a in rows:
        mine = list(finished[a.request.id].token_ids)
        check_tokens(model, a.request, mine, expected[a.request.id][: len(mine)])


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_agrees_with_transformers(family: str) -> None:
    """Flash kernel, pages, fused layers and graphs, by the check that every model passes at load."""
    loaded = adopt(model_on_card(family, torch.bfloat16))
    assert loaded.flash is not None
    fuse_linears(loaded.model)
    self_check.check(loaded, exact.PRESET, ByteTokenizer())


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_graphs_change_no_token_and_are_captured_once(temperature: float) -> None:
    """Rows join and leave, so the batch meets every size; a step of the same size is the same kernels."""
    captured = 0
    record = graphs.CudaRecorder.__call__

    def counted(self: graphs.CudaRecorder, compute: graphs.Compute) -> graphs.Compute:
        nonlocal captured
        captured += 1
        return record(self, compute)

    rows = rows_of(12, 90, temperature=temperature)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs.CudaRecorder, "__call__", counted)
        model = model_on_card("qwen2", torch.bfloat16)
        replayed = with_graphs(exact.build_engine(model, slots=12))
        assert captured == len(graphs.graph_sizes(12))
        plain = exact.build_engine(model, slots=12)
        for engine in (replayed, plain):
            assert engine.admit(rows[:1]) == []
            for row in rows[1:]:
                engine.step()
                assert engine.admit([row]) == []
        expected, finished = drain(plain), drain(replayed)
    assert captured == len(graphs.graph_sizes(12)), "captured again"
    # Batches that are filled up may take other kernels, so the last bits may differ.
    same = sum(finished[i].token_ids[:8] == end.token_ids[:8] for i, end in expected.items())
    assert same >= 10


def test_a_row_depends_on_nobody() -> None:
    """One split over keys: beside a long row, a short one has the same attention bit for bit."""
    model = model_on_card("llama", torch.bfloat16)
    engine = with_graphs(exact.build_engine(model, slots=2))
    short, long = rows_of(1, 60)[0], GenerationRequest("long", [9] * 300, Sampling(60, 1))
    assert engine.admit([replace(short, id="other"), short]) == []
    expected = drain(engine)[short.id].token_ids
    assert engine.admit([long, short]) == []
    assert drain(engine)[short.id].token_ids == expected


def test_adapters_share_graphs(tmp_path: Path) -> None:
    model = model_on_card("llama", torch.bfloat16)
    folder = write_adapter(tmp_path / "a", model, EVERYTHING, 4, seed=1)
    folders = {"a": str(folder), "b": str(folder)}
    config = EngineConfig("transformers", None, exact.PRESET, slots=4, adapters=folders)
    engine = with_graphs(
        TransformersEngine(
            with_adapters(adopt(model), read_adapters(model, folders)), config, ByteTokenizer()
        )
    )
    [row] = rows_of(1, 40)
    for adapters in ((None, "a", "b"), ("b", None, "a")):
        rows = [replace(row, id=f"{name}", adapter=name) for name in adapters]
        assert engine.admit(rows) == []
        ends = drain(engine)
        assert ends["a"].token_ids == ends["b"].token_ids != ends["None"].token_ids


def test_memory_is_what_was_planned() -> None:
    model = model_on_card("llama", torch.bfloat16)
    loaded = adopt(model)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    slots = 64
    engine = with_graphs(exact.build_engine(model, slots=slots))
    assert engine.admit(rows_of(slots, 100, temperature=0.8)) == []
    drain(engine)
    planned = loaded.footprint.kv_bytes(
        slots, slots * exact.CONTEXT_TOKENS
    ) + loaded.footprint.workspace_bytes(slots, exact.CONTEXT_TOKENS)
    assert torch.cuda.max_memory_allocated() - before <= planned + 64 * 1024**2  # cuBLAS workspaces


@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 0.8}, {"temperature": 0.8, "top_k": 5}, {"repetition_penalty": 1.2}],
)
def test_a_decode_step_waits_for_the_device_once(sampling: dict[str, Any]) -> None:
    engine = with_graphs(exact.build_engine(model_on_card("llama", torch.bfloat16), slots=8))
    assert engine.admit(rows_of(8, 100, **sampling)) == []
    for _ in range(30):
        engine.step()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in waits if "synchroniz" in str(w.message)]) == 1
    drain(engine)


def test_failing_allocations_change_no_token() -> None:
    model = model_on_card("llama")
    rows = rows_of(4, 12)
    engine = exact.build_engine(model, slots=4)
    with failing_allocations() as allocations:
        assert engine.admit(rows) == []
        expected = drain(engine)
    for k in range(1, allocations.count + 1, 5):
        engine = exact.build_engine(model, slots=4)
        with failing_allocations({k}):
            assert engine.admit(rows) == []
            finished = drain(engine)
        assert {i: f.token_ids for i, f in finished.items()} == {
            i: f.token_ids for i, f in expected.items()
        }, k


def test_memory_that_really_runs_out_is_survived() -> None:
    """Rows for 64 times what the card may give: all end, with the tokens of a card that has it."""
    model = model_on_card("llama", torch.float16)
    rows = rows_of(64, 400)
    roomy = exact.build_engine(model, slots=64, kv_tokens=64 * 512)
    assert roomy.admit(rows) == []
    lengths = {i: len(f.token_ids) for i, f in drain(roomy).items()}
    roomy.close()
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    allowed = torch.cuda.memory_reserved() + 24 * 1024**2
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        engine = exact.build_engine(model, slots=64, kv_tokens=64 * 512)
        assert engine.admit(rows) == []
        finished = drain(engine)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert all(f.error is None for f in finished.values())
    assert {i: len(f.token_ids) for i, f in finished.items()} == lengths
