"""The rows of a batch file, as they are and sampled."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

Line = dict[str, Any]


def read_lines(path: Path, *, repeat: int) -> list[Line]:
    """The file's lines, ``repeat`` times, each with an id of its own."""
    lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    return [
        line | {"custom_id": f"{turn}-{line['custom_id']}"}
        for turn in range(repeat)
        for line in lines
    ]


def sampled(lines: Sequence[Line], *, temperature: float, top_p: float) -> list[Line]:
    """The same rows sampled, each with a seed of its own."""
    how = {"temperature": temperature, "top_p": top_p}
    return [line | {"body": line["body"] | how | {"seed": seed}} for seed, line in enumerate(lines)]


def write_lines(lines: Sequence[Line], path: Path) -> None:
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
