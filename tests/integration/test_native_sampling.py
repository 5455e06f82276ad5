"""The kernels choose the token that torch chooses, for the same logits and seed: not nearly always,
but always."""

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from millpond.messages.constraints import Constraint
from millpond.models.grammars import GrammarCompiler
from millpond.models.presets import Preset
from millpond.models.tokenization import ByteTokenizer
from tests.conftest import skip_or_fail
from worker.engines.base import EngineConfig, Finished, GenerationRequest, Sampling
from worker.engines.model import loading
from worker.engines.model.engine import TransformersEngine
from worker.engines.native.compiling import NoKernelsError
from worker.engines.native.library import load_library
from worker.engines.native.sampler import NativeSampler
from worker.engines.sampling.sampling import (
    Output,
    _masses,
    exponent_scale,
    next_tokens,
    sample,
    torch_sampler,
)
from worker.engines.scheduling.matcher import Matcher
from worker.engines.scheduling.row import Row

CACHE = Path.home() / ".cache" / "millpond"
TEMPERATURES = (0.0, 1e-30, 0.05, 0.6, 0.6, 1.0, 1.0, 3.0, 10.0)


@pytest.fixture(scope="module")
def native() -> NativeSampler:
    try:
        return NativeSampler(load_library(CACHE))
    except NoKernelsError as error:
        skip_or_fail(str(error))
        raise


def row(rng: random.Random, vocab_size: int, **fixed: Any) -> Row:
    """A row with parameters at random, most of them off, and some tokens behind it."""

    def maybe(*values: Any) -> Any:
        return rng.choice(values) if rng.random() < 0.4 else values[0]

    some = [rng.randrange(vocab_size) for _ in range(12)]
    sampling = {
        "temperature": rng.choice(TEMPERATURES),
        "top_p": maybe(1.0, 0.95, 0.95, 0.5, 0.999999, 1e-9),
        "top_k": maybe(0, 1, 2, 20, 50, 1000, vocab_size - 1, vocab_size, 10**6),
        "min_p": maybe(0.0, 0.05, 0.3, 1e-6, 1.0),
        "repetition_penalty": maybe(1.0, 1.1, 0.7),
        "presence_penalty": maybe(0.0, 1.3, -0.4),
        "frequency_penalty": maybe(0.0, 0.37, -1.1),
        "logit_bias": maybe((), tuple((t, rng.uniform(-5, 5)) for t in set(some[:5]))),
        "min_tokens": maybe(0, 500),
        "stop_token_ids": tuple(some[5:7]),
        "ignore_eos": True,
        "seed": rng.randrange(2**63),
        **fixed,
    }
    request = GenerationRequest("r", some[:6], Sampling(max_tokens=1000, **sampling))
    made = Row(request, ByteTokenizer())
    for _ in range(rng.randrange(9)):
        if made.finish_reason is None:
            made.append(rng.choice(some[:9]))
    return made


def plain_row(**sampling: Any) -> Row:
    values = {"max_tokens": 10, "seed": 0, "ignore_eos": True, **sampling}
    return Row(GenerationRequest("r", [1], Sampling(**values)), ByteTokenizer())


def logits_of(kind: str, rows: int, vocab_size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab_size, generator=generator)
    match kind:
        case "flat":
            return logits * 0.01
        case "usual":
            return logits * 2.5
        case "peaked":
            return logits * 6
        case "few values":
            return logits.round()
        case "bfloat16":
            return (logits * 3).bfloat16().float()
        case "all equal":
            return torch.zeros(rows, vocab_size)
        case "two values":
            return torch.where(logits > 1, 9.0, -9.0)
    raise AssertionError(kind)


KINDS = ("flat", "usual", "peaked", "few values", "bfloat16", "all equal", "two values")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab_size", [1, 2, 15, 16, 17, 255, 2049, 4000])
def test_the_same_tokens_as_torch(native: NativeSampler, vocab_size: int, kind: str) -> None:
    rng = random.Random(f"{kind} {vocab_size}")
    count = 150
    rows = [row(rng, vocab_size) for _ in range(count)]
    logits = logits_of(kind, count, vocab_size, seed=vocab_size)
    expected = sample(logits.clone(), rows)
    assert vocab_size < 3 or None not in expected
    assert native(logits, range(count), rows) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab_size", [49_152, 152_000])
def test_the_same_tokens_as_torch_in_large_vocabularies(
    native: NativeSampler, vocab_size: int, kind: str
) -> None:
    rng = random.Random(kind)
    rows = [
        row(rng, vocab_size, temperature=0.6, top_p=0.95),
        row(rng, vocab_size, temperature=1.0, top_k=20, top_p=0.95),
        row(rng, vocab_size, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0),
        *(row(rng, vocab_size) for _ in range(5)),
    ]
    logits = logits_of(kind, len(rows), vocab_size, seed=1)
    expected = sample(logits.clone(), rows)
    assert native(logits, range(len(rows)), rows) == expected


@pytest.mark.parametrize("vocab_size", [1, 15, 16, 17, 33, 2049, 49_152])
def test_the_same_tokens_as_torch_under_constraints(native: NativeSampler, vocab_size: int) -> None:
    """Of which each allows few tokens, half of them, or nearly all; and free rows among them."""
    rng, bits = random.Random(vocab_size), np.random.default_rng(vocab_size)
    grammar = GrammarCompiler(ByteTokenizer()).compile(Constraint("regex", "", ".*"))
    rows = [row(rng, vocab_size) for _ in range(24)]
    logits = logits_of("usual", len(rows), vocab_size, seed=vocab_size)
    allowed = torch.ones(len(rows), vocab_size, dtype=torch.bool)
    for i, share in enumerate((0.001, 0.5, 0.999) * 6):
        chosen = bits.random(vocab_size) < share
        matcher = Matcher(grammar, vocab_size)
        packed = np.packbits(chosen, bitorder="little")
        np.frombuffer(matcher.mask, dtype=np.uint8)[: len(packed)] = packed
        rows[i].matcher, allowed[i] = matcher, torch.from_numpy(chosen)
    expected = sample(logits.clone(), rows)
    assert native(logits, range(len(rows)), rows) == expected
    for token, tokens in zip(expected, allowed, strict=True):
        assert token is None or tokens[token]
    assert expected.count(None) < len(rows)


def test_every_parameter_by_itself(native: NativeSampler) -> None:
    """As one of many parameters, each might be ignored where another decides."""
    vocab_size = 3000
    alone: list[dict[str, Any]] = [
        {"top_p": 0.9},
        {"top_k": 7},
        {"min_p": 0.1},
        {"repetition_penalty": 3.0},
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"logit_bias": ((3, 30.0), (8, 30.5))},
        {"min_tokens": 500},
        {"logprobs": 3},
    ]
    off = Sampling(max_tokens=1000, seed=0)
    for sampling in alone:
        rng = random.Random(1)
        names = ("top_p", "top_k", "min_p", "min_tokens", "logit_bias")
        penalties = ("repetition_penalty", "presence_penalty", "frequency_penalty")
        plain = {name: getattr(off, name) for name in (*names, *penalties)}
        rows = [row(rng, vocab_size, **plain | {"temperature": 1.0} | sampling) for _ in range(400)]
        logits = logits_of("usual", len(rows), vocab_size, seed=2)
        expected = sample(logits.clone(), rows)
        assert native(logits, range(len(rows)), rows) == expected, sampling


@pytest.mark.parametrize("temperature", [1e-30, 0.05, 0.6, 1.0, 10.0])
def test_the_same_masses_bit_for_bit(native: NativeSampler, temperature: float) -> None:
    """The kernels leave them where the logits were. Few of their last bits ever decide a draw."""
    rng = random.Random(8)
    rows = [row(rng, 4000, temperature=temperature) for _ in range(40)]
    for one in rows:
        one.counts, one.adjusts_logits = None, False
        one.sampling = replace(one.sampling, logit_bias=(), min_tokens=0)
    logits = logits_of("peaked", len(rows), 4000, seed=6)
    logits[:, ::7] *= torch.logspace(-9, 2, 40)[:, None]
    scale = torch.tensor([exponent_scale(one.sampling) for one in rows])
    expected = _masses(logits.clone(), logits.amax(-1), scale)
    native(logits, range(len(rows)), rows)
    assert torch.equal(logits, expected)
    assert expected.max() == 2**44


def test_masses_are_powers_to_float32() -> None:
    exponents = -torch.linspace(0, 40, 100_001)
    masses = _masses(exponents[None].clone(), torch.zeros(1), torch.ones(1))[0].double()
    exact = 2.0 ** (44 + exponents.double())
    assert ((masses - exact).abs() <= 1 + 2.5e-7 * exact).all()


def test_a_draw_at_the_edge_between_two_tokens_takes_the_second(
    native: NativeSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges = [0, 1, 2047, 2048, 2049, 4095]
    for module in ("sampling.sampling", "native.sampler"):
        monkeypatch.setattr(
            f"worker.engines.{module}.uniforms",
            lambda *_: np.array(edges) / 4096,
        )
    for sampling in ({}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.5}):
        rows = [plain_row(temperature=1.0, **sampling) for _ in edges]
        logits = torch.zeros(len(edges), 4096)
        assert sample(logits.clone(), rows) == edges
        assert native(logits, range(len(edges)), rows) == edges


def test_a_token_with_just_less_than_top_p_above_it_stays(native: NativeSampler) -> None:
    """The masses are 2^44 and 2^43, and top_p of them is half a unit more than the first."""
    temperature, top_p = math.log2(math.e), (2**44 + 0.5) / (1.5 * 2**44)
    for wanted, share in (({0, 1}, top_p), ({0}, 2**44 / (1.5 * 2**44))):
        rows = [plain_row(temperature=temperature, top_p=share, seed=i) for i in range(50)]
        logits = torch.tensor([0.0, -1.0]).repeat(50, 1)
        expected = sample(logits.clone(), rows)
        assert set(expected) == wanted
        assert native(logits, range(50), rows) == expected


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_row_without_finite_logits_has_no_token(
    native: NativeSampler, bad: float, temperature: float
) -> None:
    """A few of minus infinity are tokens that are never chosen; nothing else there is none."""
    rng = random.Random(2)
    rows = [row(rng, 300, temperature=temperature, top_p=0.9, min_tokens=0) for _ in range(3)]
    logits = logits_of("usual", 3, 300, seed=3)
    logits[1] = bad
    logits[0, 290:] = -torch.inf
    expected = sample(logits.clone(), rows)
    assert expected[1] is None
    assert native(logits, range(3), rows) == expected
    assert None not in (expected[0], expected[2])
    logits = logits_of("usual", 3, 300, seed=3)
    logits[1, 17] = bad
    expected = sample(logits.clone(), rows)
    assert (expected[1] is None) == (bad != -float("inf"))
    assert native(logits, range(3), rows) == expected


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_and_company_have_no_say(
    native: NativeSampler, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(3)
    rows = [row(rng, 5000) for _ in range(23)]
    logits = logits_of("usual", len(rows), 5000, seed=4)
    alone = [native(logits[i : i + 1].clone(), [0], [r])[0] for i, r in enumerate(rows)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert native(logits, range(len(rows)), rows) == alone


def test_only_the_rows_that_need_logits_are_drawn(native: NativeSampler) -> None:
    """Greedy rows keep what the forward pass found, and their logits are not looked at."""
    rng = random.Random(4)
    greedy = row(rng, 400, temperature=0.0, min_tokens=0, logit_bias=(), repetition_penalty=1.0)
    greedy.counts, greedy.adjusts_logits = None, False
    rows = [row(rng, 400, temperature=1.0, logprobs=2), greedy, row(rng, 400, temperature=0.8)]
    logits = logits_of("usual", 3, 400, seed=5)
    logits[1] = torch.nan
    drawn = [
        next_tokens(Output(logits.clone(), [None, 321, None]), rows, sampler)
        for sampler in (torch_sampler, native)
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0].tokens[1] == 321
    assert None not in drawn[0].tokens
    assert [told is None for told in drawn[0].logprobs] == [False, True, True]


def test_an_engine_makes_the_same_text_with_either(native: NativeSampler, tmp_path: Path) -> None:
    """The kernels' own logits, drawn from in place and by torch; rows of every kind in one batch."""
    torch.manual_seed(6)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    ends = {"bos_token_id": None, "pad_token_id": 0, "eos_token_id": ByteTokenizer.EOS}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=300, max_position_embeddings=256, **sizes, **heads, **ends)
    )
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    preset = Preset(name="tiny", source="", context_tokens=256)
    config = EngineConfig(
        "transformers", tmp_path, preset, dtype="bfloat16", slots=12, kv_tokens=3000
    )
    loaded = loading.load(config, ByteTokenizer())
    assert loaded.native is not None
    rng = random.Random(7)
    rows = [row(rng, 257, temperature=rng.choice((0.0, 0.6, 1.5))) for _ in range(30)]
    ends_of = []
    for sampler in (native, torch_sampler):
        engine = TransformersEngine(loaded, config, ByteTokenizer())
        engine._sampler = sampler
        ends_of.append(drain(engine, rows))
    assert ends_of[0] == ends_of[1]
    assert len(set(ends_of[0].values())) > 20


def drain(engine: TransformersEngine, rows: list[Row]) -> dict[str, tuple[int, ...]]:
    waiting = [
        GenerationRequest(f"{i}", r.prompt_token_ids, replace(r.sampling, max_tokens=25))
        for i, r in enumerate(rows)
    ]
    ends: dict[str, tuple[int, ...]] = {}
    while waiting or engine.num_rows:
        free = engine.capacity().free_slots
        assert engine.admit(waiting[:free]) == []
        waiting = waiting[free:]
        ends |= {e.id: e.token_ids for e in engine.step() if isinstance(e, Finished)}
    return ends
