"""Forty rows of the real model: in float32 every kernel set says what transformers' `generate` says."""

import json
from pathlib import Path
from typing import Any

import pytest

from millpond.messages import Message
from millpond.models.presets import PRESETS
from millpond.models.tokenization import FolderTokenizer
from tests.integration.golden.make_rows import ROWS
from tests.integration.test_kernel_sets import PLAIN
from tests.integration.test_native import drain
from tests.knobs import ALL_KERNELS
from worker.engines.base import EngineConfig, GenerationRequest, Sampling
from worker.engines.model.engine import TransformersEngine
from worker.weights import prepare_model

pytestmark = pytest.mark.model

PRESET = PRESETS["smollm2-135m"]
CACHE = Path.home() / ".cache" / "millpond"
TOKENS = 24 if ALL_KERNELS else 10


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("isa", PLAIN)
def test_float32_is_token_for_token_that_of_transformers(
    isa: Any, rows: list[dict[str, Any]]
) -> None:
    folder = prepare_model(PRESET, CACHE)
    tokenizer = FolderTokenizer(folder)
    config = EngineConfig(
        "transformers", folder, PRESET, "float32", slots=24, kv_tokens=20_000, cpu_isa=isa
    )
    engine = TransformersEngine.load(config, tokenizer)
    assert (engine.info.backend, engine.info.dtype) == (f"native {isa}", "float32")
    waiting = [
        GenerationRequest(
            f"{i}",
            tokenizer.encode_chat([Message(role="user", content=row["prompt"])]),
            Sampling(max_tokens=TOKENS, seed=0, ignore_eos=True),
        )
        for i, row in enumerate(rows)
    ]
    assert engine.admit(waiting[:24]) == []
    found = drain(engine)
    assert engine.admit(waiting[24:]) == []
    found |= drain(engine)
    engine.close()
    assert [list(found[f"{i}"].token_ids) for i in range(len(rows))] == [
        row["token_ids"][:TOKENS] for row in rows
    ]
