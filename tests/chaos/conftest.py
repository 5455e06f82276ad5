"""In which order the rows start."""

import itertools
from typing import Any

import pytest

# Minutes in full size.
LONG = ("test_a_huge_backlog", "test_a_long_run", "test_a_primary_is_killed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long rows first, so that none is left for the end, and each before a short one: side by side
    (`--dist load`), a process is given two at once."""
    ranks = {item: rank for item in items if (rank := _rank(item)) < len(LONG)}
    long = sorted(ranks, key=ranks.__getitem__)
    short: Any = (item for item in items if item not in ranks)
    pairs = itertools.zip_longest(long, itertools.islice(short, len(long)))
    items[:] = [item for pair in pairs for item in pair if item is not None] + list(short)


def _rank(item: pytest.Item) -> int:
    return next((i for i, name in enumerate(LONG) if item.name.startswith(name)), len(LONG))
