"""Checking an input file: its lines become rows in the order in which they run, or the batch fails."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO

from millpond.batches.order import OrderKey, order_key, run_order
from millpond.batches.records import BatchProblem
from millpond.batches.rows import encode_row
from millpond.openai.batch_file import BadLine, read_rows, split_lines

MAX_ROWS = 50_000
# Of a batch that fails; the rest is only counted.
MAX_PROBLEMS = 100
# Of one object with rows.
ROWS_AN_OBJECT = 500
OBJECT_BYTES = 4 * 1024 * 1024
LOOK_EVERY_ROWS = 200


class GivenUpError(Exception):
    """The check was told to stop."""


@dataclass(slots=True)
class CheckedFile:
    """``spool`` holds the rows in the order of their lines, ``spans`` where each one is in it."""

    spool: IO[bytes]
    keys: list[OrderKey] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    models: set[str] = field(default_factory=set)
    problems: list[BatchProblem] = field(default_factory=list)
    more_problems: int = 0

    @property
    def total(self) -> int:
        return len(self.spans)

    def objects(self) -> Iterator[tuple[int, bytes]]:
        """The rows in the order in which they run, in pieces, each with the place of its first row."""
        piece: list[bytes] = []
        num_bytes = first = 0
        for place, index in enumerate(run_order(self.keys)):
            start, length = self.spans[index]
            if piece and (len(piece) == ROWS_AN_OBJECT or num_bytes + length > OBJECT_BYTES):
                yield first, b"".join(piece)
                piece, num_bytes, first = [], 0, place
            self.spool.seek(start)
            piece.append(self.spool.read(length))
            num_bytes += length
        if piece:
            yield first, b"".join(piece)


def check_file(
    blocks: Iterable[bytes],
    spool: IO[bytes],
    *,
    route: str,
    queues: Mapping[str, str],
    home: str,
    given_up: Callable[[], bool],
) -> CheckedFile:
    """``queues``: the queue of each model that is served; ``home`` is that of lines without a model.

    Blocking. Raises GivenUpError.
    """
    checked = CheckedFile(spool)
    written = 0
    for item in read_rows(split_lines(blocks), route=route, models=queues.keys()):
        if checked.total % LOOK_EVERY_ROWS == 0 and given_up():
            raise GivenUpError
        if isinstance(item, BadLine):
            _add_problem(checked, item)
            continue
        if checked.total == MAX_ROWS:
            problem = BatchProblem(
                "too_many_requests",
                f"more than {MAX_ROWS} requests, the limit of one batch",
                item.line_number,
            )
            checked.problems = [problem]
            return checked
        model = item.request.model
        queue = home if model is None else queues[model]
        row = encode_row(queue, item)
        checked.spool.write(row)
        checked.spans.append((written, len(row)))
        checked.keys.append(order_key(queue, item.request, len(row)))
        checked.models |= set() if model is None else {model}
        written += len(row)
    if not checked.total and not checked.problems:
        checked.problems.append(BatchProblem("empty_file", "the file has no requests"))
    return checked


def _add_problem(checked: CheckedFile, bad: BadLine) -> None:
    if len(checked.problems) < MAX_PROBLEMS:
        checked.problems.append(BatchProblem(bad.code, bad.message, bad.line_number, bad.param))
    else:
        checked.more_problems += 1
