"""The memory of one call of the kernels, copied to where another process can have it."""

import ctypes
from typing import Any

import numpy as np

_LINE = 64


class Image:
    """Structs and arrays one after another, with pointers as offsets from the beginning."""

    def __init__(self) -> None:
        self._bytes = bytearray(_LINE)  # so that no offset is 0, which is no pointer
        self._pointers: list[int] = []
        self._copied: dict[int, tuple[int, int]] = {}

    def copy(self, address: int | None, size: int) -> int:
        """The offset of the copy; 0 for no address."""
        if not address or not size:
            return 0
        if address not in self._copied:
            self._copied[address] = (self.reserve(size), size)
            self._write(self._copied[address][0], ctypes.string_at(address, size))
        return self._copied[address][0]

    def reserve(self, size: int) -> int:
        start = len(self._bytes)
        self._bytes += bytes(size + -size % _LINE)
        return start

    def struct(self, values: ctypes.Structure, **offsets: int) -> int:
        """The struct with these offsets in its pointers."""
        start = self.reserve(ctypes.sizeof(values))
        self.fill(start, values, **offsets)
        return start

    def fill(self, start: int, values: ctypes.Structure, **offsets: int) -> None:
        self._write(start, bytes(values))
        for name, offset in offsets.items():
            self._point(start + getattr(type(values), name).offset, offset)

    def pointers(self, offsets: list[int]) -> int:
        start = self.reserve(8 * len(offsets))
        for i, offset in enumerate(offsets):
            self._point(start + 8 * i, offset)
        return start

    def message(self, what: int, model: int, batch: int) -> bytes:
        head = np.array([what, model, batch, len(self._pointers), len(self._bytes)], np.int64)
        return b"".join((head.tobytes(), np.array(self._pointers, np.int64).tobytes(), self._bytes))

    def copy_back(self, answer: bytes, *addresses: Any) -> None:
        """To the memory that was copied, from the image as it is after the call. What was empty stays."""
        for address in addresses:
            start, size = self._copied.get(address, (0, 0))
            ctypes.memmove(address, answer[start : start + size], size)

    def _point(self, place: int, offset: int) -> None:
        self._write(place, np.int64(offset).tobytes())
        if offset:
            self._pointers.append(place)

    def _write(self, place: int, data: bytes) -> None:
        self._bytes[place : place + len(data)] = data
