"""The page's files, with a version that stands in their addresses."""

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

WEB = Path(__file__).parent / "web"
INDEX = "index.html"
# In the index's addresses of the other files.
VERSION_MARK = b"{{version}}"
MEDIA_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
    "": "text/plain",  # licences
}
# Fonts are compressed already.
_COMPRESSIBLE = frozenset(MEDIA_TYPES) - {".woff2"}
_DIGITS = 12


@dataclass(frozen=True, slots=True)
class PageFile:
    """``gzipped`` is None where compression gains nothing."""

    content: bytes
    gzipped: bytes | None
    media_type: str


class PageFiles:
    """All files under ``web/``, by their path there. A file is read and compressed at its first use.

    ``version`` changes with any file. It stands in the address of every file but the index, so that a
    browser may keep them for ever and never mixes two versions.
    """

    def __init__(self, folder: Path = WEB) -> None:
        self._paths = {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix in MEDIA_TYPES
        }
        self._read: dict[str, PageFile] = {}
        digest = hashlib.sha256()
        for name, path in self._paths.items():
            digest.update(f"{name}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        self.version = digest.hexdigest()[:_DIGITS]

    @property
    def names(self) -> list[str]:
        return list(self._paths)

    def get(self, name: str) -> PageFile | None:
        """None if there is no such file. May block for some milliseconds."""
        path = self._paths.get(name)
        if path is None:
            return None
        if name not in self._read:
            self._read[name] = self._load(name, path)
        return self._read[name]

    def _load(self, name: str, path: Path) -> PageFile:
        content = path.read_bytes()
        if name == INDEX:
            content = content.replace(VERSION_MARK, self.version.encode())
        packed = gzip.compress(content, 9, mtime=0) if path.suffix in _COMPRESSIBLE else None
        return PageFile(content, packed, MEDIA_TYPES[path.suffix])
