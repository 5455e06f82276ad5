"""What counts as a loop: against the plain definition, on random text with and without repetitions."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.messages import FinishReason
from millpond.models.tokenization import ByteTokenizer
from worker.engines.base import GenerationRequest, Sampling
from worker.engines.scheduling.loop_finder import (
    LONGEST_LOOP_TOKENS,
    SHORTEST_SPAN_TOKENS,
    LoopFinder,
)
from worker.engines.scheduling.row import Row


def first_loop(token_ids: list[int], repeats: int) -> int | None:
    """How many tokens it takes, by definition."""
    for end in range(1, len(token_ids) + 1):
        for size in range(1, LONGEST_LOOP_TOKENS + 1):
            span = max(size * repeats, SHORTEST_SPAN_TOKENS)
            last = token_ids[end - span : end]
            if span <= end and all(a == b for a, b in zip(last, last[size:], strict=False)):
                return end
    return None


def found_loop(token_ids: list[int], repeats: int) -> int | None:
    finder = LoopFinder(repeats)
    return next((n for n, token_id in enumerate(token_ids, 1) if finder.push(token_id)), None)


@given(
    st.lists(st.integers(0, 2), max_size=60),
    st.lists(st.integers(0, 2), min_size=1, max_size=12),
    st.integers(0, 40),
    st.integers(2, 6),
)
def test_the_first_loop_is_found_and_no_other(
    before: list[int], unit: list[int], times: int, repeats: int
) -> None:
    token_ids = before + unit * times
    assert found_loop(token_ids, repeats) == first_loop(token_ids, repeats)


@pytest.mark.parametrize("size", [1, 2, 31, 63, 64, 65])
def test_runs_of_up_to_64_tokens_are_noticed(size: int) -> None:
    unit = random.Random(size).sample(range(1000), size)
    ends = max(3 * size, SHORTEST_SPAN_TOKENS)
    assert found_loop([*unit * (ends // size + 2)], 3) == (ends if size <= 64 else None)


def a_row(**sampling: int | bool) -> Row:
    values = {"max_tokens": 200, "seed": 0, "loop_repeats": 4, **sampling}
    return Row(GenerationRequest("r", [7], Sampling(**values)), ByteTokenizer())  # type: ignore[arg-type]


def written(row: Row, token_ids: list[int]) -> int:
    """Append until the row ends; how many tokens it took."""
    for n, token_id in enumerate(token_ids, 1):
        row.append(token_id)
        if row.finish_reason is not None:
            return n
    return 0


def test_a_loop_ends_the_row_with_its_own_reason() -> None:
    row = a_row()
    assert written(row, list(b"so it goes, " * 20)) == 48
    assert row.finish_reason is FinishReason.LOOP
    row.take_delta()
    assert row.finished().text == "so it goes, " * 4


def test_a_loop_is_no_end_before_min_tokens_nor_without_being_asked_for() -> None:
    assert written(a_row(min_tokens=100), list(b"a" * 200)) == 100
    plain = Row(GenerationRequest("r", [7], Sampling(200, 0)), ByteTokenizer())
    assert written(plain, list(b"a" * 200)) == 200
    assert plain.finish_reason is FinishReason.LENGTH
