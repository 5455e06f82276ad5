"""On a CUDA device: exactness, replayed graphs, one wait a step, and memory that really runs out."""

import random
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.integration import test_exactness as exact
from tests.integration.faults import failing_allocations
from tests.integration.test_memory import FAMILIES, arrivals, check_tokens, drain, serve
from worker.engines.base import GenerationRequest, Sampling
from worker.engines.model.engine import TransformersEngine
from worker.engines.torch.model_runner import ModelRunner

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


def without_graphs(engine: TransformersEngine) -> TransformersEngine:
    old: Any = engine._runner
    engine._runner = ModelRunner(old._model, old._windows, old._cache)
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


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_replayed_graphs_change_no_token(temperature: float) -> None:
    model = model_on_card("qwen2")
    rows = rows_of(12, 90, temperature=temperature)
    plain = without_graphs(exact.build_engine(model, slots=12))
    assert plain.admit(rows) == []
    expected = drain(plain)
    engine = exact.build_engine(model, slots=12)
    assert engine.admit(rows) == []
    for _ in range(40):
        engine.step()
    runner: Any = engine._runner
    assert runner._replay._step is not None, "nothing was recorded"
    assert not runner._replay._broken
    engine.cancel([r.id for r in rows])
    engine.step()
    # The buckets stand as they stood, and now the recording is used from the first step on.
    assert engine.admit(rows) == []
    assert {i: f.token_ids for i, f in drain(engine).items()} == {
        i: f.token_ids for i, f in expected.items()
    }


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8}, {"temperature": 0.8, "top_k": 5}])
def test_a_decode_step_waits_for_the_device_once(sampling: dict[str, Any]) -> None:
    engine = exact.build_engine(model_on_card("llama"), slots=8)
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
    engine = without_graphs(exact.build_engine(model, slots=4))
    with failing_allocations() as allocations:
        assert engine.admit(rows) == []
        expected = drain(engine)
    for k in range(1, allocations.count + 1, 5):
        engine = without_graphs(exact.build_engine(model, slots=4))
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
