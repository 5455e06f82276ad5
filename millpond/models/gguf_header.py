"""The metadata and tensor names in the header of a GGUF file, read without loading the weights."""

import struct
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from millpond.errors import ModelLoadError

T = TypeVar("T")

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
    """The metadata entries whose key ends with one of ``wanted``; for an array, its length.

    Stops once each has been found. Raises ModelLoadError if the file is not a readable GGUF file.
    """
    return _reading(path, lambda file: _find(file, set(wanted)))


def read_gguf_tensor_names(path: Path) -> set[str]:
    """Raises ModelLoadError if the file is not a readable GGUF file."""
    return _reading(path, _tensor_names)


def _reading(path: Path, read: Callable[[BinaryIO], T]) -> T:
    try:
        with path.open("rb") as file:
            return read(file)
    except (OSError, EOFError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise ModelLoadError(f"{path}: is not a readable GGUF file ({error})") from error


def _counts(file: BinaryIO) -> tuple[int, int]:
    """The number of tensors and of metadata entries, from the start of the file."""
    if file.read(4) != _MAGIC:
        raise ValueError("wrong magic number")
    version, num_tensors, num_entries = _unpack(file, "<IQQ")
    if version not in _VERSIONS or max(num_tensors, num_entries) > _MAX_ENTRIES:
        raise ValueError(f"version {version} with {num_entries} entries, {num_tensors} tensors")
    return num_tensors, num_entries


def _find(file: BinaryIO, wanted: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    _, num_entries = _counts(file)
    for _ in range(num_entries):
        if not wanted:
            break
        key, value = _entry(file)
        ending = next((end for end in wanted if key.endswith(end)), None)
        if ending is not None:
            found[ending] = value
            wanted.discard(ending)
    return found


def _tensor_names(file: BinaryIO) -> set[str]:
    num_tensors, num_entries = _counts(file)
    for _ in range(num_entries):
        _entry(file)
    names = set()
    for _ in range(num_tensors):
        names.add(_string(file))
        (dimensions,) = _unpack(file, "<I")
        # Skip the dimensions, the type and the offset of the data.
        _exactly(file, 8 * dimensions + 4 + 8)
    return names


def _entry(file: BinaryIO) -> tuple[str, Any]:
    key = _string(file)
    (kind,) = _unpack(file, "<I")
    if kind == _ARRAY:
        return key, _skip_array(file)
    return key, _string(file) if kind == _STRING else _number(file, kind)


def _skip_array(file: BinaryIO) -> int:
    """Returns its length."""
    kind, count = _unpack(file, "<IQ")
    if kind == _STRING:
        for _ in range(count):
            (length,) = _unpack(file, "<Q")
            file.seek(length, 1)
    else:
        file.seek(count * struct.calcsize(_number_format(kind)), 1)
    return int(count)


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
        raise EOFError("unexpected end of file")
    return data
