"""Each planted fault can still be planted; ``python -m tests.mutations`` sees whether it is noticed."""

import pytest

from tests.mutations import MUTATIONS, ROOT, Mutation, planted


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_the_place_of_each_fault_is_still_there(mutation: Mutation) -> None:
    assert planted(mutation) != (ROOT / mutation.file).read_text()
    assert (ROOT / mutation.caught_by).is_file()


def test_names_are_told_apart() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
