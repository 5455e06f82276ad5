"""Every engine in its smallest form, and rows to run through them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from millpond.messages import FinishReason
from millpond.models.presets import Preset
from millpond.models.tokenization import ByteTokenizer
from worker.engines import build_engine
from worker.engines.base import Delta, Engine, EngineConfig, Finished, GenerationRequest, Sampling
from worker.engines.remote.config import RemoteConfig
from worker.engines.simulated import SimulatedConfig, SimulatedCosts, SimulatedFaults

TOKENIZER = ByteTokenizer()
CONTEXT_TOKENS = 256

# A row that repeats itself: the simulated engine heeds the prompt, the real one the bias.
LOOP = "[loop]"
LOOPING = {"logit_bias": ((65, 100.0),)}
SIMULATED = SimulatedConfig(SimulatedCosts.free(), SimulatedFaults(loop_marker=LOOP))

Build = Callable[..., Engine]


def _preset() -> Preset:
    return Preset(name="tiny", source="", context_tokens=CONTEXT_TOKENS)


def _build_simulated(*, slots: int, kv_tokens: int | None) -> Engine:
    config = EngineConfig("simulated", None, _preset(), slots=slots, kv_tokens=kv_tokens)
    return build_engine(config, TOKENIZER, simulated=SIMULATED)


def builder(request: pytest.FixtureRequest) -> Build:
    if request.param == "simulated":
        return _build_simulated
    if request.param == "remote":
        upstream = request.getfixturevalue("upstream")
        remote = RemoteConfig(upstream.url)

        def build_remote(slots: int, kv_tokens: int | None) -> Engine:
            config = EngineConfig("remote", None, _preset(), slots=slots, kv_tokens=kv_tokens)
            return build_engine(config, TOKENIZER, remote=remote)

        return build_remote
    model = request.getfixturevalue("tiny_llama")

    def build_tiny(slots: int, kv_tokens: int | None) -> Engine:
        from worker.engines.model.engine import TransformersEngine
        from worker.engines.model.loading import adopt

        config = EngineConfig("transformers", None, _preset(), slots=slots, kv_tokens=kv_tokens)
        return TransformersEngine(adopt(model), config, TOKENIZER)

    return build_tiny


def request(row_id: str, prompt: str = "", **sampling: Any) -> GenerationRequest:
    values = {"max_tokens": 12, "seed": 1, "ignore_eos": True, **sampling}
    return GenerationRequest(row_id, TOKENIZER.encode(prompt or row_id), Sampling(**values))


@dataclass
class Rows:
    """Collects events and checks, as they come, what holds for every engine."""

    finished: dict[str, Finished] = field(default_factory=dict)
    deltas: dict[str, list[Delta]] = field(default_factory=dict)

    def take(self, engine: Engine) -> None:
        for event in engine.step():
            assert event.id not in self.finished, "an event after the end"
            if isinstance(event, Delta):
                self.deltas.setdefault(event.id, []).append(event)
            else:
                self._check_end(event)
                self.finished[event.id] = event

    def _check_end(self, end: Finished) -> None:
        deltas = self.deltas.get(end.id, [])
        assert "".join(d.text for d in deltas) == end.text
        assert "".join(d.reasoning for d in deltas) == end.reasoning
        assert tuple(t for d in deltas for t in d.token_ids) == end.token_ids
        assert (end.error is not None) == (end.reason is FinishReason.ERROR)
        if end.logprobs is not None:
            assert len(end.logprobs) == len(end.token_ids)


def run(engine: Engine, *requests: GenerationRequest) -> dict[str, Finished]:
    """Admit as one group and run dry."""
    assert engine.admit(requests) == []
    return drain(engine)


def drain(engine: Engine) -> dict[str, Finished]:
    rows = Rows()
    for _ in range(10_000):
        if not engine.num_rows:
            return rows.finished
        rows.take(engine)
    raise AssertionError("the engine does not end its rows")


def paced_by_steps(engine: Engine) -> bool:
    """Whether a step gives each row one token; an upstream has a pace of its own."""
    return engine.info.engine != "remote"


def same_row(one: Finished, other: Finished) -> bool:
    return (one.text, one.token_ids, one.reason) == (other.text, other.token_ids, other.reason)
