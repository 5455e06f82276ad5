"""Small caches, wrong predictions and allocations that fail: the tokens are those of a row alone."""

import random
import weakref
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import transformers as tf

from millpond.messages import FinishReason
from millpond.models.presets import Preset
from millpond.models.tokenization import ByteTokenizer
from tests.conftest import skip_or_fail
from tests.integration import test_exactness as exact
from tests.integration.faults import failing_allocations
from tests.knobs import FUZZ_EXAMPLES
from worker.engines.base import Delta, EngineConfig, Finished, GenerationRequest, Sampling
from worker.engines.model import loading
from worker.engines.model.engine import TransformersEngine
from worker.engines.model.loading import LoadedModel
from worker.engines.native.compiling import NoKernelsError
from worker.engines.native.library import load_library

PRESET = Preset(name="tiny", source="", context_tokens=exact.CONTEXT_TOKENS)
PHI = {"phi": lambda: tf.PhiForCausalLM(tf.PhiConfig(**exact.COMMON))}
FAMILIES = exact.FAMILIES | PHI

Build = Callable[[], TransformersEngine]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These models are too small for two: threads that wait for each other take the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drain(engine: TransformersEngine) -> dict[str, Finished]:
    """Run dry; the deltas of each row add up to its end, so nothing is sent twice or lost."""
    finished: dict[str, Finished] = {}
    deltas: dict[str, list[Delta]] = {}
    for _ in range(20_000):
        if not engine.num_rows:
            break
        for event in engine.step():
            if isinstance(event, Delta):
                deltas.setdefault(event.id, []).append(event)
            else:
                finished[event.id] = event
    for row_id, end in finished.items():
        mine = deltas.get(row_id, [])
        assert tuple(t for d in mine for t in d.token_ids) == end.token_ids
        assert "".join(d.text for d in mine) == end.text
    return finished


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LoadedModel]:
    """A tiny model that the compiled kernels run, by its weights."""
    folder = tmp_path_factory.mktemp("native")
    config = EngineConfig("transformers", folder, PRESET, "bfloat16", slots=64)
    try:
        load_library(config.cache_dir)
    except NoKernelsError as error:
        skip_or_fail(str(error))
    torch.manual_seed(11)
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 32, "initializer_range": 0.15}
    model = tf.Qwen3ForCausalLM(tf.Qwen3Config(**exact.COMMON | sizes))
    model.to(torch.bfloat16).save_pretrained(config.model_folder)
    return lambda weights="auto": loading.load(replace(config, weights=weights), ByteTokenizer())


def native_engine(
    loaded: LoadedModel, *, slots: int, kv_tokens: int, max_batched_tokens: int = 512
) -> TransformersEngine:
    assert loaded.native is not None
    config = EngineConfig(
        "transformers",
        None,
        PRESET,
        slots=slots,
        kv_tokens=kv_tokens,
        max_batched_tokens=max_batched_tokens,
    )
    return TransformersEngine(loaded, config, ByteTokenizer())


# -- small caches and predictions


@dataclass(frozen=True)
class Arrival:
    request: GenerationRequest
    step: int
    cancelled_at: int | None


def arrivals(rng: random.Random, count: int, most_tokens: int) -> list[Arrival]:
    """Rows of any length, come at any step, some of them cancelled, most predicted wrongly."""
    drawn = []
    for i in range(count):
        prompt = rng.choice([1, 2, 63, 64, 65, 127, 128, 129, rng.randint(1, most_tokens - 60)])
        max_tokens = rng.randint(1, min(140, most_tokens - prompt))
        predicted = rng.choice([None, 1, 1, rng.randint(1, 100)])
        request = GenerationRequest(
            f"r{i}",
            [rng.randrange(256) for _ in range(prompt)],
            Sampling(max_tokens=max_tokens, seed=i),
            predicted,
        )
        cancelled_at = rng.randint(0, 120) if rng.random() < 0.15 else None
        drawn.append(Arrival(request, rng.randint(0, 40), cancelled_at))
    return sorted(drawn, key=lambda a: a.step)


def check_tokens(model: Any, request: GenerationRequest, mine: list[int], alone: list[int]) -> None:
    """They are the same; or they part where the model itself likes both tokens alike but for the last
    bits of its logits, which is as far as float32 can decide."""
    differing = (i for i, (a, b) in enumerate(zip(mine, alone, strict=True)) if a != b)
    at = next(differing, None)
    if at is None:
        return
    model.set_attn_implementation("sdpa")
    ids = torch.tensor([[*request.prompt_token_ids, *alone[:at]]], device=model.device)
    with torch.inference_mode():
        logits = model(ids).logits[0, -1]
    assert abs(float(logits[alone[at]] - logits[mine[at]])) < 5e-5, (request.id, at)


def serve(engine: TransformersEngine, rows: list[Arrival]) -> tuple[dict[str, Finished], int]:
    """Each row's end, and how many times a row was preempted."""
    preempted = 0
    scheduler = engine._scheduler
    original = scheduler.preempt

    def counted(row: Any) -> None:
        nonlocal preempted
        preempted += 1
        original(row)

    scheduler.preempt = counted  # type: ignore[method-assign]
    finished: dict[str, Finished] = {}
    waiting = list(rows)
    step = 0
    while waiting or engine.num_rows:
        here = [a.request for a in waiting if a.step <= step]
        refused = {r.id for r in engine.admit(here)}
        waiting = [a for a in waiting if a.step > step or a.request.id in refused]
        engine.cancel([a.request.id for a in rows if a.cancelled_at == step])
        finished.update({e.id: e for e in engine.step() if isinstance(e, Finished)})
        step += 1
        assert step < 20_000
    return finished, preempted


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_in_a_cache_that_is_too_small_equal_generate_alone(
    family: str,
) -> None:
    """Arrivals, cancels, refills, predictions, budgets and chunks of prefill drawn at random."""
    torch.manual_seed(11)
    model = FAMILIES[family]().eval()
    rng = random.Random(family)
    preempted = 0
    for _ in range(3 if FUZZ_EXAMPLES >= 500 else 2):
        kv_tokens = rng.randint(230, 420)
        rows = arrivals(rng, 11, kv_tokens)
        expected = {
            a.request.id: exact.generate_alone(
                model, list(a.request.prompt_token_ids), a.request.sampling.max_tokens
            )
            for a in rows
        }
        engine = exact.build_engine(
            model,
            slots=rng.randint(2, 7),
            kv_tokens=kv_tokens,
            max_batched_tokens=rng.choice([7, 64, 2048]),
        )
        finished, times = serve(engine, rows)
        preempted += times
        assert set(finished) == set(expected)
        for a in rows:
            end = finished[a.request.id]
            alone = expected[a.request.id]
            if end.reason is FinishReason.CANCELLED:
                assert a.cancelled_at is not None
                alone = alone[: len(end.token_ids)]
            check_tokens(model, a.request, list(end.token_ids), alone)
        assert engine.capacity().free_tokens == kv_tokens
    assert preempted > 0


def test_stop_strings_text_and_seeds_survive_being_preempted() -> None:
    model = exact.build_model("llama")
    rng = random.Random(5)
    requests = [
        GenerationRequest(
            f"r{i}",
            [rng.randrange(256) for _ in range(60)],
            Sampling(max_tokens=120, seed=i, temperature=0.8, top_p=0.95, min_tokens=30),
            predicted_tokens=10,
        )
        for i in range(5)
    ]
    reference = exact.build_engine(model, slots=5, kv_tokens=2000)
    assert reference.admit(requests) == []
    plain = drain(reference)
    stops = {i: end.text[40:44] for i, end in plain.items() if len(end.text) > 60}
    assert stops
    requests = [
        GenerationRequest(
            r.id,
            r.prompt_token_ids,
            Sampling(**sampling_of(r) | {"stop": (stops[r.id],) if r.id in stops else ()}),
            10,
        )
        for r in requests
    ]
    assert reference.admit(requests) == []
    expected = drain(reference)
    small = exact.build_engine(model, slots=5, kv_tokens=360)
    assert small.admit(requests) == []
    finished = drain(small)
    for row_id, end in expected.items():
        assert (finished[row_id].text, finished[row_id].token_ids, finished[row_id].reason) == (
            end.text,
            end.token_ids,
            end.reason,
        )


def sampling_of(request: GenerationRequest) -> dict[str, Any]:
    return {f: getattr(request.sampling, f) for f in request.sampling.__slots__}


@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_native_rows_in_a_cache_that_is_too_small_are_the_same_bit_for_bit(
    weights: str, native: Callable[..., LoadedModel]
) -> None:
    loaded = native(weights)
    rng = random.Random(weights)
    preempted = 0
    for _ in range(4):
        kv_tokens = rng.randint(230, 420)
        rows = arrivals(rng, 14, kv_tokens)
        alone = native_engine(loaded, slots=1, kv_tokens=512)
        expected = {}
        for a in rows:
            assert alone.admit([a.request]) == []
            expected |= drain(alone)
        engine = native_engine(
            loaded,
            slots=rng.randint(2, 7),
            kv_tokens=kv_tokens,
            max_batched_tokens=rng.choice([7, 64, 2048]),
        )
        finished, times = serve(engine, rows)
        preempted += times
        for row_id, end in finished.items():
            if end.reason is FinishReason.CANCELLED:
                assert end.token_ids == expected[row_id].token_ids[: len(end.token_ids)]
            else:
                assert end.token_ids == expected[row_id].token_ids, row_id
    assert preempted > 0


# -- allocations that fail


def torch_engine(kv_tokens: int = 600) -> Build:
    torch.manual_seed(1)
    config = tf.LlamaConfig(**exact.COMMON | {"num_hidden_layers": 1})
    model = tf.LlamaForCausalLM(config).eval()
    return lambda: exact.build_engine(model, slots=3, kv_tokens=kv_tokens)


def rows_that_meet_every_allocation() -> list[GenerationRequest]:
    """One goes on in its next page within its five tokens; one is sampled."""

    def sampling(seed: int, **values: Any) -> Sampling:
        return Sampling(max_tokens=5, seed=seed, ignore_eos=True, **values)

    drawn = sampling(1, temperature=0.7, top_p=0.9, repetition_penalty=1.2, logprobs=2)
    return [
        GenerationRequest("grows", [1] * 126, sampling(0)),
        GenerationRequest("drawn", [2, 3], drawn),
        GenerationRequest("plain", [5] * 9, sampling(2, temperature=0.7)),
    ]


def run(
    engine: TransformersEngine, requests: list[GenerationRequest], failing: Container[int] = ()
) -> tuple[dict[str, Finished], int]:
    with failing_allocations(failing) as allocations:
        assert engine.admit(requests) == []
        finished = drain(engine)
    assert engine.num_rows == 0
    assert not places(engine)
    return finished, allocations.count


def places(engine: TransformersEngine) -> Container[str]:
    """The rows that still have a place in the cache."""
    cache: Any = engine._cache
    tables: Container[str] = cache._tables
    return tables


def check_every_allocation(build: Build) -> None:
    requests = rows_that_meet_every_allocation()
    expected, count = run(build(), requests)
    assert count > 20
    for k in range(1, count + 1):
        engine = build()
        finished, _ = run(engine, requests, {k})
        for row_id, end in expected.items():
            assert finished[row_id].error is None, (k, finished[row_id].error)
            assert finished[row_id].token_ids == end.token_ids, k
        # It still serves, and in time forgets.
        again, _ = run(engine, requests[:1])
        assert again["grows"].token_ids == expected["grows"].token_ids


def check_several_allocations(build: Build) -> None:
    """Any pattern of failures: a row ends rightly, or it was alone and is told what would fit."""
    requests = rows_that_meet_every_allocation()
    expected, count = run(build(), requests)
    for seed in range(60):
        rng = random.Random(seed)
        failing = {k for k in range(1, 3 * count) if rng.random() < rng.choice([0.005, 0.03])}
        finished, _ = run(build(), requests, failing)
        for row_id, end in expected.items():
            error = finished[row_id].error
            if error is None:
                assert finished[row_id].token_ids == end.token_ids
            else:
                assert "nothing else running" in error
                assert "tokens together should fit" in error
                mine = finished[row_id].token_ids
                assert mine == end.token_ids[: len(mine)]


def test_any_allocation_may_fail_and_no_token_changes() -> None:
    check_every_allocation(torch_engine())


def test_many_allocations_may_fail() -> None:
    check_several_allocations(torch_engine())


def test_any_native_allocation_may_fail_and_no_bit_changes(
    native: Callable[..., LoadedModel],
) -> None:
    loaded = native()
    check_every_allocation(lambda: native_engine(loaded, slots=3, kv_tokens=600))


def test_many_native_allocations_may_fail(native: Callable[..., LoadedModel]) -> None:
    loaded = native()
    check_several_allocations(lambda: native_engine(loaded, slots=3, kv_tokens=600))


def test_a_row_that_cannot_run_alone_is_told_what_would_fit() -> None:
    engine = torch_engine()()
    [request, *_] = rows_that_meet_every_allocation()
    finished, _ = run(engine, [request], range(1, 10_000))
    error = finished["grows"].error or ""
    assert "out of memory at 126 tokens with nothing else running" in error
    assert "63 tokens together should fit" in error
    again, _ = run(engine, [request])
    assert again["grows"].error is None


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_recovery_begins_when_what_failed_is_free(phase: str) -> None:
    """A traceback keeps its frames alive, and they the activations of the pass that ran out."""
    engine = torch_engine()()
    [request, *_] = rows_that_meet_every_allocation()
    assert engine.admit([request, replace(request, id="other")]) == []
    if phase == "decode":
        engine.step()
    activations: list[weakref.ref[torch.Tensor]] = []
    alive_at_recovery: list[bool] = []

    def out_of_memory(*_: Any, **__: Any) -> Any:
        held = torch.zeros(1000)
        activations.append(weakref.ref(held))
        raise torch.OutOfMemoryError("CUDA out of memory")

    trim = engine._cache.trim

    def watched() -> None:
        alive_at_recovery.append(activations[-1]() is not None)
        trim()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._runner, "_forward", out_of_memory)
        patch.setattr(engine._cache, "trim", watched)
        engine.step()
    assert alive_at_recovery == [False]
    ends: list[Finished] = []
    while engine.num_rows:
        ends += [event for event in engine.step() if isinstance(event, Finished)]
    assert [end.error for end in ends] == [None, None]


def test_the_budget_learns_and_forgets() -> None:
    engine = torch_engine(kv_tokens=6_400)()
    sampling = Sampling(max_tokens=400, seed=0, ignore_eos=True)
    rows = [GenerationRequest(f"r{i}", [7] * 10, sampling) for i in range(2)]
    with failing_allocations({700}):
        assert engine.admit(rows) == []
        while engine.capacity().free_tokens == 6_400 - 2 * 410:
            engine.step()
    assert len(engine._scheduler.running) == 1
    assert engine.capacity().free_tokens == 0
    limit = engine._scheduler._budget.limit_tokens
    assert limit <= 100
    engine.cancel(["r1"])
    for _ in range(70):
        engine.step()
    assert engine._scheduler._budget.limit_tokens == limit + 100
    engine.cancel(["r0"])
    engine.step()
    assert engine.capacity().free_tokens == limit + 100
