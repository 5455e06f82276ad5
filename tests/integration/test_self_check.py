"""Faults planted in the engine's own forward pass: the check at load refuses the model for each."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from millpond.errors import UnsupportedModelError
from millpond.models.presets import Preset
from millpond.models.tokenization import ByteTokenizer
from tests.conftest import skip_or_fail
from worker.engines.base import EngineConfig
from worker.engines.model import backend, loading, self_check
from worker.engines.model.engine import TransformersEngine
from worker.engines.model.loading import LoadedModel
from worker.engines.model.probe_text import probe_tokens
from worker.engines.native.compiling import NoKernelsError
from worker.engines.native.library import load_library
from worker.engines.native.smoothing import ChannelPeaks
from worker.engines.paging.pages import PagedCache
from worker.engines.scheduling.prefill import Chunk, cut_chunks
from worker.engines.torch import gathered

TOKENIZER = ByteTokenizer()
PRESET = Preset(
    name="tiny", source="", context_tokens=2300, system_prompt="Answer in one short sentence. " * 3
)
SIZES = {
    "vocab_size": ByteTokenizer.vocab_size,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": ByteTokenizer.EOS,
}


def model() -> Any:
    torch.manual_seed(5)
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES)).eval()


Load = Callable[..., LoadedModel]


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """The model as the compiled kernels run it, anew for each test."""
    folder: Path = tmp_path_factory.mktemp("model")
    config = EngineConfig("transformers", folder, PRESET, "bfloat16", slots=4)
    try:
        load_library(config.cache_dir)
    except NoKernelsError as error:
        skip_or_fail(str(error))
    model().to(torch.bfloat16).save_pretrained(folder)

    def load(weights: Any = "auto") -> LoadedModel:
        return loading.load(replace(config, weights=weights), TOKENIZER)

    return load


def check(loaded: LoadedModel) -> None:
    self_check.check(loaded, PRESET, TOKENIZER)


@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_what_is_right_passes(weights: str, native: Load) -> None:
    check(native(weights))


def test_what_is_right_passes_on_torch() -> None:
    check(loading.adopt(model()))


def test_rope_that_is_wrong_at_a_distance_is_refused(native: Load) -> None:
    loaded = native()
    assert loaded.native is not None
    tables = [t for t in loaded.native.model._kept if t.shape == (2300, 16)]
    assert len(tables) == 2
    with torch.inference_mode():
        for table in tables:
            table[1024:] = table[: 2300 - 1024].clone()
    with pytest.raises(UnsupportedModelError, match="in prefill, after 2100 tokens"):
        check(loaded)


def test_a_wrong_page_is_refused(native: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second page lies over the first: seen only past 64 tokens."""
    loaded = native()
    reach = PagedCache.reach

    def wrong(self: PagedCache, row: Any, num_tokens: int) -> None:
        reach(self, row, num_tokens)
        table = self.table_of(row)
        if table.used > table.borrowed + 1:
            table.numbers[table.used - 1] = table.numbers[table.used - 2]

    monkeypatch.setattr(PagedCache, "reach", wrong)
    with pytest.raises(UnsupportedModelError, match=r"after (65|127|200|2100) tokens"):
        check(loaded)


def test_a_shared_prefix_that_is_not_copied_is_refused(
    native: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = native()
    borrow = PagedCache._borrow_prefix

    def wrong(self: PagedCache, row: Any, table: Any) -> None:
        borrow(self, row, table)
        if table.used > table.borrowed:
            self.pool.zero(int(table.numbers[table.borrowed]))

    monkeypatch.setattr(PagedCache, "_borrow_prefix", wrong)
    with pytest.raises(UnsupportedModelError, match=r"after (127|200|2100) tokens"):
        check(loaded)


def test_a_page_that_is_wrong_in_decode_alone_is_refused(
    native: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of 63 tokens crosses into its second page by decoding."""
    loaded = native()

    def never(self: PagedCache) -> None:
        for row in self.rows:
            if row.num_tokens % 64 == 1:
                table = self.table_of(row)
                table.numbers[table.used] = table.numbers[table.used - 1]
                table.used += 1

    monkeypatch.setattr(PagedCache, "make_room", never)
    with pytest.raises(UnsupportedModelError, match="in decode"):
        check(loaded)


def _late(rows: Any, chunk_tokens: int) -> list[Chunk]:
    """Each piece that goes on with a row leaves out a token."""
    return [
        Chunk([(r, start + (start > 0), stop) for r, start, stop in c.pieces], c.ended)
        for c in cut_chunks(rows, chunk_tokens)
    ]


def test_a_chunk_that_does_not_go_on_where_the_last_ended_is_refused(
    native: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "cut_chunks", _late)
    for loaded in (native(), loading.adopt(model())):
        with pytest.raises(UnsupportedModelError, match="in prefill"):
            check(loaded)


def test_a_chunk_that_does_not_see_the_one_before_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = gathered._Piece._stored

    def wrong(self: Any, pages: torch.Tensor, first: int) -> torch.Tensor:
        return stored(self, pages, first).roll(1, dims=0)

    monkeypatch.setattr(gathered._Piece, "_stored", wrong)
    with pytest.raises(UnsupportedModelError, match="in prefill"):
        check(loading.adopt(model()))


def test_int8_that_loses_too_much_is_refused(native: Load) -> None:
    loaded = native("int8")
    assert loaded.native is not None
    weights = [t for t in loaded.native.model._kept if t.dtype == torch.int8]
    assert weights
    with torch.inference_mode():
        for weight in weights:
            weight.bitwise_and_(-32)  # three bits are left
    with pytest.raises(UnsupportedModelError, match=r"diverge|agree"):
        check(loaded)


def test_calibration_finds_powers_of_two_and_leaves_the_model_as_it_was() -> None:
    """In float32, whatever the model is in: so processors that round bfloat16 differently agree."""
    tokens = probe_tokens(TOKENIZER, ByteTokenizer.vocab_size)
    rounded = model().to(torch.bfloat16)
    before = {name: weight.clone() for name, weight in rounded.named_parameters()}
    with torch.inference_mode():
        found = ChannelPeaks(rounded, tokens)
        exact = ChannelPeaks(rounded.float(), tokens)
        layer = rounded.model.layers[0].self_attn.q_proj
        factors = found.factors(layer, layer.weight)
        assert torch.equal(factors, exact.factors(layer, layer.weight))
    assert torch.equal(factors.log2(), factors.log2().round())
    for name, weight in rounded.named_parameters():
        assert torch.equal(weight.to(torch.bfloat16), before[name])


def test_the_long_part_is_done_once_for_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    model().save_pretrained(folder)
    config = EngineConfig(
        "transformers", folder, PRESET, "float32", slots=2, kv_tokens=500, cache_dir=tmp_path
    )
    done: list[bool] = []
    monkeypatch.setattr(self_check, "check", lambda *_, long: done.append(long))

    def load() -> None:
        TransformersEngine.load(config, TOKENIZER).close()

    load()
    load()
    model().save_pretrained(folder)  # written again: it may be another
    load()
    assert done == [True, False, True]


def test_a_model_that_was_refused_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    model().save_pretrained(folder)
    config = EngineConfig("transformers", folder, PRESET, "float32", slots=2, cache_dir=tmp_path)

    def refuse(*_: Any, long: bool) -> None:
        assert long
        raise UnsupportedModelError("differs")

    monkeypatch.setattr(self_check, "check", refuse)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="differs"):
            TransformersEngine.load(config, TOKENIZER)


def test_the_text_is_long_and_varied_enough() -> None:
    tokens = probe_tokens(TOKENIZER, ByteTokenizer.vocab_size)
    assert len(tokens) > 2100
    assert len(set(tokens)) > 120
