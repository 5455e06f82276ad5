"""The check at load, family by family: wrong rope far behind, and at the ends of chunks and of pages."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from millpond.errors import UnsupportedModelError
from tests.conftest import skip_or_fail
from tests.integration import test_self_check as tiny
from worker.engines.base import EngineConfig
from worker.engines.model import backend, loading, self_check
from worker.engines.model.far_probes import far_places
from worker.engines.model.loading import LoadedModel
from worker.engines.native.compiling import NoKernelsError
from worker.engines.native.library import load_library
from worker.engines.paging.pages import PagedCache
from worker.engines.torch.attention import ATTENTION_NAME

CONTEXT_TOKENS = 8200
PRESET = replace(tiny.PRESET, context_tokens=CONTEXT_TOKENS)
SIZES = tiny.SIZES | {"max_position_embeddings": 2 * CONTEXT_TOKENS, "pad_token_id": None}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**SIZES),
    "mistral": lambda: tf.MistralConfig(**SIZES, sliding_window=24),
    "qwen2": lambda: tf.Qwen2Config(**SIZES),
    "qwen3": lambda: tf.Qwen3Config(**SIZES),
    "phi3": lambda: tf.Phi3Config(**SIZES, sliding_window=None),
}
FAR = 8000

Fault = Callable[[LoadedModel, pytest.MonkeyPatch], AbstractContextManager[None]]


@pytest.fixture(autouse=True)
def short_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows far behind do not need the one of 2,100 tokens."""
    monkeypatch.setattr(self_check, "_PROBE_TOKENS", (5, 29, 63, 64, 65, 127, 200))


@contextmanager
def wrong_far_rope(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """From there on every position is turned as one a thousand before it."""
    if loaded.native is None:
        rotary = loaded.model.model.rotary_emb
        forward = rotary.forward

        def wrong(states: torch.Tensor, position_ids: torch.Tensor) -> Any:
            ours = loaded.model.config._attn_implementation == ATTENTION_NAME
            shift = torch.where(position_ids >= FAR, 1000 * ours, 0)
            return forward(states, position_ids - shift)

        with monkeypatch.context() as patch:
            patch.setattr(rotary, "forward", wrong)
            yield
        return
    tables = loaded.native.model.rotary
    right = [table.clone() for table in tables]
    with torch.inference_mode():
        for table, kept in zip(tables, right, strict=True):
            table[FAR:] = kept[FAR - 1000 : len(kept) - 1000]
        yield
        for table, kept in zip(tables, right, strict=True):
            table.copy_(kept)


@contextmanager
def chunk_that_loses_a_token(_: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(backend, "cut_chunks", tiny._late)
        yield


@contextmanager
def page_off_by_one(_: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A row's next page comes a token late."""

    def late(self: PagedCache[Any]) -> None:
        for row in self.rows:
            if row.num_tokens % self.page_tokens == 2:
                self.reach(row, row.num_tokens)

    with monkeypatch.context() as patch:
        patch.setattr(PagedCache, "make_room", late)
        yield


FAULTS: dict[str, tuple[Fault, str]] = {
    "rope": (wrong_far_rope, r"in prefill, after 80\d\d tokens"),
    "chunk": (chunk_that_loses_a_token, "in prefill"),
    "page": (page_off_by_one, "in decode"),
}


def check(loaded: LoadedModel) -> None:
    self_check.check(loaded, PRESET, tiny.TOKENIZER)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("computes", ["native", "torch"])
def test_what_is_right_passes_and_each_fault_is_refused(
    computes: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    model = tf.AutoModelForCausalLM.from_config(FAMILIES[family]())
    if computes == "torch":
        loaded = loading.adopt(model.eval())
    else:
        config = EngineConfig("transformers", tmp_path, PRESET, "float32", slots=4)
        try:
            load_library(config.cache_dir, float32=True)
        except NoKernelsError as error:
            skip_or_fail(str(error))
        model.save_pretrained(tmp_path)
        loaded = loading.load(config, tiny.TOKENIZER)
    assert (loaded.native is None) == (computes == "torch")
    check(loaded)
    for fault, told in FAULTS.values():
        with fault(loaded, monkeypatch), pytest.raises(UnsupportedModelError, match=told):
            check(loaded)
    check(loaded)


def test_rope_that_is_wrong_where_no_row_looks_is_refused(tmp_path: Path) -> None:
    """The kernels' tables are compared at all positions."""
    torch.manual_seed(5)
    tf.AutoModelForCausalLM.from_config(FAMILIES["llama"]()).save_pretrained(tmp_path)
    config = EngineConfig("transformers", tmp_path, PRESET, "float32", slots=4)
    loaded = loading.load(config, tiny.TOKENIZER)
    if loaded.native is None:
        skip_or_fail("no kernels")
    with torch.inference_mode():
        loaded.native.model.rotary[1][5001] *= -1
    with pytest.raises(UnsupportedModelError, match="at position 5001"):
        check(loaded)


def test_where_the_check_looks_in_a_long_context() -> None:
    def places(most: int, *wanted: int, longest: int = 2100, page_tokens: int = 64) -> list[int]:
        return far_places(most, wanted, longest=longest, page_tokens=page_tokens)

    assert places(131_000, 8000, 8192) == [8000, 8192, 130_944]
    assert places(131_000, 8000) == [8000, 130_944]
    assert places(131_000, 8000, page_tokens=256) == [7936, 130_816]
    assert places(4000, 8000, 2048) == [3968]
    assert places(296, 8000, 64, longest=296) == []
