"""Recorded decode steps, as far as a CPU can tell: over whole buckets, rows come and go, nothing
changes. What CUDA records and replays is here computed each time; see test_gpu.py for the rest."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from millpond.messages import FinishReason
from tests.integration import test_exactness as exact
from tests.integration.test_memory import (
    FAMILIES,
    arrivals,
    check_every_allocation,
    check_tokens,
    drain,
    serve,
    torch_engine,
)
from worker.engines.base import GenerationRequest, Sampling
from worker.engines.model import loading
from worker.engines.model.engine import TransformersEngine
from worker.engines.torch import memory, replay
from worker.engines.torch.model_runner import ModelRunner


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Recordings after two steps, and no threads, for which these models are too small."""
    monkeypatch.setattr(replay, "STEADY_STEPS", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Recorder:
    """Counts recordings and replays, and fails the recordings whose numbers, from 1, are given."""

    def __init__(
        self, failing: tuple[int, ...] = (), error: type[Exception] = RuntimeError
    ) -> None:
        self._failing = failing
        self._error = error
        self.recordings = 0
        self.replays = 0

    def __call__(self, compute: replay.Compute) -> replay.Compute:
        self.recordings += 1
        compute()  # as the warm-up before a capture does
        if self.recordings in self._failing:
            raise self._error("not in a recording")

        def again() -> torch.Tensor:
            self.replays += 1
            return compute()

        return again


def recorded(engine: TransformersEngine, recorder: Recorder) -> TransformersEngine:
    old: Any = engine._runner
    engine._runner = ModelRunner(old._model, old._windows, old._cache, record=recorder)
    return engine


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_come_and_go_between_replays(family: str) -> None:
    torch.manual_seed(11)
    model = FAMILIES[family]().eval()
    rng = random.Random(family)
    rows = arrivals(rng, 16, 400)
    expected = {
        a.request.id: exact.generate_alone(
            model, list(a.request.prompt_token_ids), a.request.sampling.max_tokens
        )
        for a in rows
    }
    recorder = Recorder()
    engine = recorded(exact.build_engine(model, slots=6, kv_tokens=900), recorder)
    finished, _ = serve(engine, rows)
    for a in rows:
        end = finished[a.request.id]
        alone = expected[a.request.id]
        if end.reason is FinishReason.CANCELLED:
            alone = alone[: len(end.token_ids)]
        check_tokens(model, a.request, list(end.token_ids), alone)
    assert recorder.replays > recorder.recordings > 1


def some_rows(count: int = 3, max_tokens: int = 30) -> list[GenerationRequest]:
    sampling = Sampling(max_tokens=max_tokens, seed=0, ignore_eos=True)
    return [GenerationRequest(f"r{i}", [i + 1] * (i + 2), sampling) for i in range(count)]


def test_one_recording_serves_as_long_as_the_buckets_stand() -> None:
    recorder = Recorder()
    engine = recorded(exact.build_engine(exact.build_model("llama"), slots=4), recorder)
    for _ in range(3):  # a bucket with room for four: rows end and others come, and it stands
        assert engine.admit(some_rows(1, max_tokens=40)) == []
        for _ in range(10):
            engine.step()
        engine.admit([GenerationRequest("s", [9], Sampling(max_tokens=3, seed=0, ignore_eos=True))])
        while engine.num_rows:
            engine.step()
    assert recorder.recordings <= 3
    assert recorder.replays > 80


def test_what_cannot_be_recorded_is_computed(caplog: pytest.LogCaptureFixture) -> None:
    model = exact.build_model("llama")
    plain = exact.build_engine(model, slots=4)
    assert plain.admit(some_rows()) == []
    expected = drain(plain)
    recorder = Recorder(failing=(1,))
    engine = recorded(exact.build_engine(model, slots=4), recorder)
    assert engine.admit(some_rows()) == []
    finished = drain(engine)
    assert {i: f.token_ids for i, f in finished.items()} == {
        i: f.token_ids for i, f in expected.items()
    }
    assert (recorder.recordings, recorder.replays) == (1, 0)
    assert "decode steps are not recorded: not in a recording" in caplog.text


def stale(compute: replay.Compute) -> replay.Compute:
    """Wrong at once."""
    once = compute().flip(0)
    return lambda: once


def baked(compute: replay.Compute) -> replay.Compute:
    """Right for the inputs that were recorded, and no others."""
    once = compute()
    return lambda: once


@pytest.mark.parametrize("wrong", [stale, baked])
def test_a_replay_that_is_wrong_is_not_believed(
    wrong: replay.Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    model = exact.build_model("llama")
    plain = exact.build_engine(model, slots=4)
    assert plain.admit(some_rows()) == []
    expected = drain(plain)

    engine = exact.build_engine(model, slots=4)
    old: Any = engine._runner
    engine._runner = ModelRunner(old._model, old._windows, old._cache, record=wrong)
    assert engine.admit(some_rows()) == []
    finished = drain(engine)
    assert {i: f.token_ids for i, f in finished.items()} == {
        i: f.token_ids for i, f in expected.items()
    }
    assert "a replay gives other logits than the step itself" in caplog.text


def test_out_of_memory_while_recording_ends_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "REST_STEPS", 3)
    model = exact.build_model("llama")
    plain = exact.build_engine(model, slots=4)
    assert plain.admit(some_rows()) == []
    expected = drain(plain)
    recorder = Recorder(failing=(1, 2), error=torch.OutOfMemoryError)
    engine = recorded(exact.build_engine(model, slots=4), recorder)
    assert engine.admit(some_rows()) == []
    finished = drain(engine)
    assert {i: f.token_ids for i, f in finished.items()} == {
        i: f.token_ids for i, f in expected.items()
    }
    assert recorder.recordings >= 3
    assert recorder.replays > 0


def test_any_allocation_may_fail_with_replays_too() -> None:
    build = torch_engine()
    check_every_allocation(lambda: recorded(build(), Recorder()))


# -- what is decided for CUDA without having it


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
