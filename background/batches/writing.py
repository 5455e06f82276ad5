"""The lines of an output and of its errors, written as parts: each part whole, then recorded."""

import asyncio
import time
from collections.abc import Sequence

from background.batches.validating import UNRECORDED_S
from background.batches.workplace import Workplace
from millpond.batches.records import Part, Turn
from millpond.messages import Usage

# Rows are to be readable within a second of their end.
WRITE_EVERY_S = 0.5
PART_BYTES = 4 * 1024 * 1024


class PartWriter:
    """Collects lines; `write` stores and records them together with the places that they fill."""

    def __init__(self, at: Workplace, turn: Turn) -> None:
        self._at = at
        self._turn = turn
        self._number = 0
        self._written_s = time.monotonic()
        self._clear()

    def _clear(self) -> None:
        self._output: list[bytes] = []
        self._errors: list[bytes] = []
        self._places: list[int] = []
        self._bytes = self._prompt_tokens = self._output_tokens = 0

    def add_output(self, place: int, line: bytes, usage: Usage | None) -> None:
        self._add(self._output, place, line)
        if usage is not None:
            self._prompt_tokens += usage.prompt_tokens
            self._output_tokens += usage.completion_tokens

    def add_error(self, place: int, line: bytes) -> None:
        self._add(self._errors, place, line)

    def drop(self, place: int) -> None:
        """The row has ended and nothing is written of it."""
        self._places.append(place)

    def _add(self, lines: list[bytes], place: int, line: bytes) -> None:
        lines.append(line)
        self._places.append(place)
        self._bytes += len(line)

    @property
    def due(self) -> bool:
        old = time.monotonic() - self._written_s > WRITE_EVERY_S
        return bool(self._places) and (old or self._bytes > PART_BYTES)

    async def write(self) -> None:
        """Raises TurnOverError."""
        if not self._places:
            return
        self._number += 1
        await self._at.batches.record_part(
            self._turn,
            self._number,
            output=await self._store("output", self._output),
            errors=await self._store("errors", self._errors),
            places=self._places,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
        )
        self._written_s = time.monotonic()
        self._clear()

    async def _store(self, kind: str, lines: Sequence[bytes]) -> Part | None:
        if not lines:
            return None
        name = f"{self._turn.batch}-{self._turn.number}-{kind}-{self._number}"
        data = b"".join(lines)
        await self._at.files.doom(name, in_s=UNRECORDED_S)
        await asyncio.to_thread(self._at.storage.write, name, data)
        return Part(name, len(data), len(lines))
