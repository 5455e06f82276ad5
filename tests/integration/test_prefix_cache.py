"""Rows that begin alike share pages: what is read, and that no bit depends on it."""

from typing import Any

import pytest

from millpond.messages import FinishReason
from tests.integration import test_exactness as exact
from tests.integration import test_native as tiny
from worker.engines.base import Finished, GenerationRequest
from worker.engines.model.engine import TransformersEngine
from worker.engines.paging.pages import PAGE_TOKENS
from worker.engines.scheduling.prefill import Chunk

kernels, load = tiny.kernels, tiny.load
COMMON_TOKENS = [(7 * i) % 251 for i in range(3 * PAGE_TOKENS + 20)]


class Reading:
    """An engine, and how many tokens of each row it has prefilled."""

    def __init__(self, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine = engine
        self.tokens: dict[str, int] = {}
        read = engine._runner.read

        def counted(chunk: Chunk, *, logits: bool = False) -> Any:
            for row, start, stop in chunk.pieces:
                self.tokens[row.id] = self.tokens.get(row.id, 0) + stop - start
            return read(chunk, logits=logits)

        monkeypatch.setattr(engine._runner, "read", counted)

    def run(self, *rows: GenerationRequest) -> dict[str, Finished]:
        assert self.engine.admit(rows) == []
        ended = tiny.drain(self.engine)
        assert self.engine._cache.allocated_tokens == 0
        return ended

    @property
    def total(self) -> int:
        return sum(self.tokens.values())


@pytest.fixture
def reading(load: Any, monkeypatch: pytest.MonkeyPatch) -> Reading:
    return Reading(tiny.engine_of(load("llama"), 8), monkeypatch)


def behind(row_id: str, own: int, **options: Any) -> GenerationRequest:
    """A row of the common tokens and some of its own."""
    return tiny.request(row_id, [*COMMON_TOKENS, *[int(row_id) + 1] * own], 20, **options)


@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_rows_of_one_group_read_what_they_share_once_and_are_as_without_the_cache(
    weights: str, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load("llama", weights=weights)
    rows = [behind(f"{i}", 30 * i + 1, temperature=i % 2) for i in range(8)]
    cached = Reading(tiny.engine_of(loaded, 8), monkeypatch)
    plain = Reading(tiny.engine_of(loaded, 8, prefix_cache_tokens=0), monkeypatch)

    together, apart = cached.run(*rows), plain.run(*rows)

    assert {i: end.token_ids for i, end in together.items()} == {
        i: end.token_ids for i, end in apart.items()
    }
    assert plain.total - cached.total == 7 * 3 * PAGE_TOKENS
    saved = [end.stats.cached_tokens for end in together.values()]
    assert sorted(saved) == [0, *[3 * PAGE_TOKENS] * 7]
    assert {end.stats.cached_tokens for end in apart.values()} == {0}


def test_a_later_row_shares_the_pages_of_one_that_has_ended_with_its_output(
    reading: Reading,
) -> None:
    first = behind("0", 1)
    output = reading.run(first)["0"].token_ids
    assert len(COMMON_TOKENS) + 1 + len(output) < 4 * PAGE_TOKENS
    longer = tiny.request("1", [*COMMON_TOKENS, 1, *output, *range(60)], 50)
    reading.run(longer)
    again = tiny.request("2", [*longer.prompt_token_ids], 3)
    ended = reading.run(again)

    prompt = len(longer.prompt_token_ids)
    assert reading.tokens["1"] == prompt - 3 * PAGE_TOKENS
    assert reading.tokens["2"] == (prompt - 1) % PAGE_TOKENS + 1
    assert ended["2"].stats.cached_tokens == prompt - reading.tokens["2"]


def test_a_prompt_of_full_pages_reads_its_last_one_again(reading: Reading) -> None:
    """The logits of its last token are wanted."""
    prompt = COMMON_TOKENS[: 2 * PAGE_TOKENS]
    one = reading.run(tiny.request("0", prompt, 9))
    other = reading.run(tiny.request("1", prompt, 9))
    assert reading.tokens == {"0": 2 * PAGE_TOKENS, "1": PAGE_TOKENS}
    assert one["0"].token_ids == other["1"].token_ids


def test_salts_keep_rows_apart(reading: Reading) -> None:
    for i, salt in enumerate(("a", "b", "a")):
        request = behind(f"{i}", 1)
        reading.run(
            GenerationRequest(
                request.id, request.prompt_token_ids, request.sampling, cache_salt=salt
            )
        )
    whole = len(COMMON_TOKENS) + 1
    assert reading.tokens == {"0": whole, "1": whole, "2": whole - 3 * PAGE_TOKENS}


def test_a_reader_that_is_cancelled_keeps_nobody_waiting(reading: Reading) -> None:
    reading.engine._scheduler._max_batched_tokens = PAGE_TOKENS
    assert reading.engine.admit([behind("0", 5), behind("1", 9)]) == []
    reading.engine.step()
    reading.engine.cancel(["0"])
    ended = tiny.drain(reading.engine)
    assert ended["0"].reason is FinishReason.CANCELLED
    assert len(ended["1"].token_ids) == 20
    assert reading.tokens["1"] == len(behind("1", 9).prompt_token_ids) - PAGE_TOKENS


def test_what_is_not_finite_is_shared_with_no_later_row(load: Any) -> None:
    loaded = load("llama")
    engine = tiny.engine_of(loaded)
    [embedding] = [
        t for t in loaded.native.model._kept if t.shape == (tiny.COMMON["vocab_size"], 96)
    ][:1]
    before = embedding[77].clone()
    row = tiny.request("r", [77] * (PAGE_TOKENS + 5), 4)
    embedding[77] = float("nan")
    assert engine.admit([row]) == []
    assert tiny.drain(engine)["r"].reason is FinishReason.ERROR
    embedding[77] = before
    assert engine.admit([row]) == []
    assert tiny.drain(engine)["r"].reason is FinishReason.LENGTH


def test_the_torch_path_shares_too(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = exact.build_engine(exact.build_model("gemma3"), slots=8)
    reading = Reading(engine, monkeypatch)
    apart = {}
    for i in range(3):
        [(row_id, end)] = (
            Reading(exact.build_engine(exact.build_model("gemma3"), slots=8), monkeypatch)
            .run(behind(f"{i}", 10 * i + 1))
            .items()
        )
        apart[row_id] = end.token_ids

    together = reading.run(*(behind(f"{i}", 10 * i + 1) for i in range(3)))

    assert {i: end.token_ids for i, end in together.items()} == apart
    assert reading.total == 3 * PAGE_TOKENS + sum(20 + 10 * i + 1 for i in range(3))


def test_rows_that_are_preempted_read_little_again(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for the prompts but not for all outputs."""
    loaded = load("llama")
    rows = [tiny.request(f"{i}", [i] * 60, 200) for i in range(6)]
    for i, row in enumerate(rows):
        rows[i] = GenerationRequest(row.id, row.prompt_token_ids, row.sampling, predicted_tokens=4)
    results, read = [], []
    for kept in (32_768, 0):
        engine = tiny.engine_of(loaded, kv_tokens=700, prefix_cache_tokens=kept)
        reading = Reading(engine, monkeypatch)
        results.append({i: end.token_ids for i, end in reading.run(*rows).items()})
        read.append(reading.total)
    assert results[0] == results[1]
    assert read[0] < read[1]
