"""The ``Range`` header of a request for a file. Pure."""

import re

from api.answers.errors import RangeNotSatisfiableError

_ONE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The bytes that are asked for, from ``begin`` up to ``end``, of a file of this size.

    None for all of them: without the header, and, as RFC 9110 lets us, where it names several ranges,
    another unit or nothing that can be read. Raises RangeNotSatisfiableError if it begins behind the file.
    """
    match = _ONE.fullmatch(header.strip()) if header is not None else None
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":  # the last so many
        begin, end = max(0, size - int(last)), size
    else:
        begin, end = int(first), size if last == "" else min(size, int(last) + 1)
        if last != "" and int(last) < begin:
            return None
    if begin >= size or begin == end:
        raise RangeNotSatisfiableError(size)
    return begin, end
