"""Every kernel set that this processor runs: right, and in float32 the same to the last bit."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from millpond.models.tokenization import ByteTokenizer
from tests.integration import test_native as tiny
from tests.integration.test_adapters import EVERYTHING, write_adapter
from worker.engines.base import EngineConfig
from worker.engines.model import loading, self_check
from worker.engines.model.backend import prefill
from worker.engines.native.kernel_sets import KERNEL_SETS, cpu_features, machine, usable_sets
from worker.engines.native.runner import NativeRunner
from worker.engines.paging.pages import PagedCache
from worker.engines.scheduling.row import Row

USABLE = [kernels.name for kernels in usable_sets(machine(), cpu_features())]
PLAIN = [kernels.name for kernels in usable_sets(machine(), cpu_features(), float32=True)]
ALL = [kernels.name for kernels in KERNEL_SETS if kernels.machine == machine()]

Load = Callable[..., loading.LoadedModel]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """A random model whose sizes leave every kernel a rest, as a kernel set runs it, with two adapters."""
    folder: Path = tmp_path_factory.mktemp("model")
    torch.manual_seed(11)
    sizes = {"sliding_window": 70, "num_attention_heads": 7, "num_key_value_heads": 1}
    model = tf.MistralForCausalLM(tf.MistralConfig(**tiny.COMMON | sizes))
    model.save_pretrained(folder)
    adapters = {
        "small": str(write_adapter(folder / "small", model, "[qv]_proj", 3, seed=1, lora_alpha=1)),
        "large": str(write_adapter(folder / "large", model, EVERYTHING, 33, seed=2, lora_alpha=2)),
    }

    def load(isa: Any, **config: Any) -> loading.LoadedModel:
        if isa not in USABLE:
            pytest.skip(f"this processor has no {isa}")
        fixed = {"slots": 7, "cpu_isa": isa, "adapters": adapters}
        chosen = EngineConfig("transformers", folder, tiny.preset(), **fixed, **config)
        loaded = loading.load(chosen, ByteTokenizer())
        assert loaded.backend == f"native {isa}"
        return loaded

    return load


ADAPTERS = {1: None, 2: "large", 3: "small", 16: None, 63: "large", 65: "large", 150: "small"}
LENGTHS = tuple(ADAPTERS)


def logits_of(
    loaded: loading.LoadedModel, lengths: Sequence[int] = LENGTHS, *, chunk_tokens: int = 40
) -> torch.Tensor:
    """``[steps, rows, vocab]``: after prefills of these lengths together, and decode steps behind them, of
    rows with different adapters and with none."""
    prompts = [[random.Random(n * i).randrange(256) for i in range(n)] for n in lengths]
    requests = [
        replace(tiny.request(f"{i}", prompt, 9), adapter=ADAPTERS[len(prompt)])
        for i, prompt in enumerate(prompts)
    ]
    rows = [Row(request, ByteTokenizer()) for request in requests]
    assert loaded.native is not None
    pages = PagedCache(loaded.native.pool, kv_tokens=1000, slots=len(rows))
    pages.allocate(rows)
    runner = NativeRunner(loaded.native.model, loaded.native.library, pages)
    found = [prefill(runner, rows, logits=True, chunk_tokens=chunk_tokens).copy().logits]
    for token in range(5):
        for row in rows:
            row.append(token)
        pages.make_room()
        decoded, output = runner.decode(rows, logits=True)
        found.append(output.of([decoded.index(row) for row in rows]).copy().logits)
    return torch.stack([logits for logits in found if logits is not None])


@pytest.mark.parametrize("weights", ["auto", "int8"])
@pytest.mark.parametrize("isa", ALL)
def test_each_agrees_with_transformers(isa: str, weights: str, load: Load) -> None:
    loaded = load(isa, weights=weights)
    self_check.check(loaded, tiny.preset(), ByteTokenizer())


@pytest.mark.parametrize("isa", ALL)
def test_in_float32_each_agrees_with_transformers_closely(isa: str, load: Load) -> None:
    if isa not in PLAIN:
        pytest.skip("float32 does without this set's products")
    loaded = load(isa, dtype="float32")
    self_check.check(loaded, tiny.preset(), ByteTokenizer())
    assert loaded.dtype_name == "float32"


def test_float32_has_the_same_bits_on_each(load: Load) -> None:
    found = [logits_of(load(isa, dtype="float32")) for isa in PLAIN]
    assert all(torch.equal(logits, found[0]) for logits in found)


@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_widened_weights_have_the_same_bits_on_each(weights: str, load: Load) -> None:
    """Sums of bytes are exact, and bfloat16 is widened to float32; only processors that multiply
    bfloat16 round otherwise."""
    isas = [isa for isa in USABLE if isa not in ("avx512_bf16", "amx")]
    found = [logits_of(load(isa, weights=weights)) for isa in isas]
    assert all(torch.equal(logits, found[0]) for logits in found)
