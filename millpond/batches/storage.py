"""Where the bytes of files are: a local folder, or whatever else fsspec can write to. Blocking; use threads.

An object is written once, as a whole, and never changes.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import fsspec
from fsspec.core import url_to_fs

from millpond.errors import InvalidRequestError, StorageUnavailableError

# Of one read or write. S3 takes parts of no less than 5 MiB.
BLOCK_BYTES = 8 * 1024 * 1024
READ_BYTES = 256 * 1024


class Storage:
    """Raises InvalidRequestError for a URL that fsspec cannot use; all methods StorageUnavailableError."""

    def __init__(self, url: str) -> None:
        try:
            self._fs, self._root = url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise InvalidRequestError("files_url", str(error)) from error
        self._local = "file" in fsspec.utils.get_protocol(url)

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """A new object; an old one of the name is replaced."""
        with _raising_unavailable():
            if self._local:
                path = Path(self._root)
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._fs.open(self._path(name), "wb", block_size=BLOCK_BYTES) as file:
                yield file

    def write(self, name: str, data: bytes) -> None:
        with self.create(name) as file:
            file.write(data)

    def read(self, name: str) -> bytes:
        with _raising_unavailable():
            return bytes(self._fs.cat_file(self._path(name)))

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        with _raising_unavailable(), self._fs.open(self._path(name), "rb") as file:
            yield file

    def blocks(self, names: Iterable[str]) -> Iterator[bytes]:
        """The bytes of these objects, one behind the other."""
        for name in names:
            with self.open(name) as file:
                while block := file.read(READ_BYTES):
                    yield block

    def span(self, parts: Iterable[tuple[str, int]], begin: int, end: int) -> Iterator[bytes]:
        """Of the bytes of these objects, one behind the other, those from ``begin`` up to ``end``.

        ``parts`` are names with their sizes.
        """
        start = 0
        for name, num_bytes in parts:
            left = min(end, start + num_bytes) - max(begin, start)
            if left > 0:
                with self.open(name) as file:
                    file.seek(max(0, begin - start))
                    while left > 0 and (block := file.read(min(left, READ_BYTES))):
                        left -= len(block)
                        yield block
            start += num_bytes

    def remove(self, names: Iterable[str]) -> None:
        """Those that are not there are removed already."""
        with _raising_unavailable():
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


@contextlib.contextmanager
def _raising_unavailable() -> Iterator[None]:
    try:
        yield
    except (OSError, TimeoutError) as error:
        raise StorageUnavailableError(error) from error
    except Exception as error:
        # s3fs lets some of botocore's own errors through.
        if type(error).__module__.startswith("botocore"):
            raise StorageUnavailableError(error) from error
        raise
