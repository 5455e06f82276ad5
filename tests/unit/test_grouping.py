"""Groups: every row once, like lengths together, within the budget."""

from hypothesis import given
from hypothesis import strategies as st

from worker.grouping import cut_groups

LENGTHS = st.lists(st.integers(1, 500), max_size=60)


@given(LENGTHS, st.integers(1, 2000), st.integers(1, 64))
def test_every_row_once_and_within_the_budget(
    lengths: list[int], budget: int, max_rows: int
) -> None:
    groups = cut_groups(lengths, budget, max_rows)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        assert 1 <= len(group) <= max_rows
        assert len(group) == 1 or len(group) * max(lengths[r] for r in group) <= budget


def test_sorting_pads_less_than_arrival_order() -> None:
    """Long and short prompts in turn, the worst case for groups in arrival order."""
    lengths = [20, 400] * 16
    padded = sum(len(g) * max(lengths[r] for r in g) for g in cut_groups(lengths, 3200, 8))
    assert padded == sum(lengths)
    arrival = sum(8 * max(lengths[i : i + 8]) for i in range(0, 32, 8))
    assert arrival == 32 * 400


def test_like_lengths_come_together_shortest_first() -> None:
    assert cut_groups([100, 5, 90, 6], 220, 8) == [[1, 3], [2, 0]]


def test_a_row_over_the_budget_is_alone() -> None:
    assert cut_groups([10, 5000, 10], 100, 8) == [[0, 2], [1]]
