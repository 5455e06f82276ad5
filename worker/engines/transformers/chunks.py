"""A prefill in forward passes of bounded size, which bounds the memory that it works in."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from worker.engines.sequence import Row


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one forward pass reads: ``pieces`` are rows with the first token and the one past the
    last; ``ended`` tells which pieces end their rows."""

    pieces: list[tuple[Row, int, int]] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)


def cut_chunks(rows: Iterable[tuple[Row, int]], chunk_tokens: int) -> list[Chunk]:
    """Cut rows, each from its first unread token, into chunks of at most so many tokens."""
    chunks = [Chunk()]
    room = chunk_tokens
    for row, start in rows:
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


def tokens_of(row: Row, start: int, stop: int) -> list[int]:
    """Prompt and output as one, from ``start`` to ``stop``."""
    return (row.prompt_token_ids + row.token_ids)[start:stop]
