"""The metadata at the head of a GGUF file, read without loading a weight."""

import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

from millpond.errors import ModelLoadError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# struct's letter for each numeric type of the format.
_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_MAX_ENTRIES = 10_000
_MAX_STRING_BYTES = 64 * 1024 * 1024


def read_gguf_header(path: Path, wanted: Collection[str]) -> dict[str, Any]:
    """The entries whose key ends with one of ``wanted``; arrays are skipped, and so not among them.

    Stops once each has been found. Raises ModelLoadError for what is no readable GGUF file.
    """
    try:
        with path.open("rb") as file:
            return _read(file, set(wanted))
    except (OSError, EOFError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise ModelLoadError(f"{path}: is no readable GGUF file ({error})") from error


def _read(file: BinaryIO, wanted: set[str]) -> dict[str, Any]:
    if file.read(4) != _MAGIC:
        raise ValueError("it does not begin as one")
    version, _, num_entries = _unpack(file, "<IQQ")
    if version not in _VERSIONS or num_entries > _MAX_ENTRIES:
        raise ValueError(f"version {version} with {num_entries} entries")
    found: dict[str, Any] = {}
    for _ in range(num_entries):
        if not wanted:
            break
        key = _string(file)
        (kind,) = _unpack(file, "<I")
        if kind == _ARRAY:
            _skip_array(file)
            continue
        value = _string(file) if kind == _STRING else _number(file, kind)
        ending = next((end for end in wanted if key.endswith(end)), None)
        if ending is not None:
            found[ending] = value
            wanted.discard(ending)
    return found


def _skip_array(file: BinaryIO) -> None:
    kind, count = _unpack(file, "<IQ")
    if kind == _STRING:
        for _ in range(count):
            (length,) = _unpack(file, "<Q")
            file.seek(length, 1)
    else:
        file.seek(count * struct.calcsize(_number_format(kind)), 1)


def _number_format(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError(f"a value of type {kind}")
    return "<" + _NUMBERS[kind]


def _number(file: BinaryIO, kind: int) -> Any:
    return _unpack(file, _number_format(kind))[0]


def _string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "<Q")
    if length > _MAX_STRING_BYTES:
        raise ValueError(f"a string of {length} bytes")
    return _exactly(file, length).decode()


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, _exactly(file, struct.calcsize(layout)))


def _exactly(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) != length:
        raise EOFError("it is cut off")
    return data
