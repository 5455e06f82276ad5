"""What may be shown of a Redis URL."""

import pytest

from millpond.connection import without_password


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:secret@host/0", "redis://:***@host/0"),
        ("rediss://api:se:cret@host:6380/0?a=b", "rediss://api:***@host:6380/0?a=b"),
        ("redis://api@host/0", "redis://api@host/0"),
    ],
)
def test_a_password_is_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
