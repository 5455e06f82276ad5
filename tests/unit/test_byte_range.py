import pytest

from api.answers.errors import RangeNotSatisfiableError
from api.requests.byte_range import byte_range


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("bytes=0-", (0, 10)),
        ("bytes=4-", (4, 10)),
        ("bytes=4-6", (4, 7)),
        ("bytes=4-99", (4, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        (None, None),
        ("bytes=-", None),
        ("bytes=6-4", None),
        ("bytes=0-1,4-5", None),
        ("lines=0-", None),
        ("bytes=٣-", None),
        (f"bytes={'9' * 5000}-", None),
    ],
)
def test_one_range_or_all_of_it(header: str | None, found: tuple[int, int] | None) -> None:
    assert byte_range(header, 10) == found


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=99-999", 10)]
)
def test_behind_the_end_there_is_nothing(header: str, size: int) -> None:
    with pytest.raises(RangeNotSatisfiableError) as refused:
        byte_range(header, size)
    assert refused.value.size == size
