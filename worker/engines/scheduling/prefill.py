"""A group's prefill, chunk by chunk: which tokens of which rows one forward pass reads."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from worker.engines.scheduling.row import Row


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one forward pass reads: ``pieces`` are rows with the first token and the one past the
    last; ``ended`` tells which pieces end their rows."""

    pieces: list[tuple[Row, int, int]] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(stop - start for _, start, stop in self.pieces)

    @property
    def token_ids(self) -> list[int]:
        return [t for row, start, stop in self.pieces for t in row.all_token_ids[start:stop]]

    @property
    def ended_rows(self) -> list[Row]:
        return [self.pieces[i][0] for i in self.ended]


def cut_chunks(rows: Iterable[Row], chunk_tokens: int) -> list[Chunk]:
    """Cut what these rows have not read yet into chunks of at most so many tokens."""
    chunks = [Chunk()]
    room = chunk_tokens
    for row in rows:
        start = row.read_tokens
        while start < row.num_tokens:
            if room == 0:
                chunks.append(Chunk())
                room = chunk_tokens
            stop = min(row.num_tokens, start + room)
            if stop == row.num_tokens:
                chunks[-1].ended.append(len(chunks[-1].pieces))
            chunks[-1].pieces.append((row, start, stop))
            room -= stop - start
            start = stop
    return chunks


class GroupPrefill:
    """One group while it is read. Rows that have the same tokens are read once.

    ``rows`` are those that have not started yet; ``group_rows`` how many there were. ``begun`` from
    the first chunk on: from then on the rows have places in the cache.
    """

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.group_rows = len(rows)
        self.begun = False
        known: dict[tuple[str | int | None, ...], int] = {}
        self._contents = {
            row.id: known.setdefault((row.adapter, *row.all_token_ids), len(known)) for row in rows
        }

    def next_chunk(self, most_tokens: int, waiting: Collection[str] = ()) -> Chunk:
        """The next tokens to read, at most so many, without the rows ``waiting``; they count as read from
        now on."""
        self.begun = True
        readers: dict[int, Row] = {}
        for row in self.rows:
            if row.id not in waiting:
                readers.setdefault(self._contents[row.id], row)
        chunk = cut_chunks(readers.values(), most_tokens)[0]
        for row, _, stop in chunk.pieces:
            row.read_tokens = stop
        return chunk

    def ended(self, chunk: Chunk) -> dict[str, list[Row]]:
        """Of each row that the chunk reads to its end, by id: all rows with its tokens, itself first."""
        return {row.id: self._alike(row) for row in chunk.ended_rows}

    def _alike(self, row: Row) -> list[Row]:
        mine = self._contents[row.id]
        return [other for other in self.rows if self._contents[other.id] == mine]

    def remove(self, rows: Iterable[Row]) -> None:
        gone = {row.id for row in rows}
        self.rows = [row for row in self.rows if row.id not in gone]
