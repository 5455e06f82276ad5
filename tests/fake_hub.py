"""A model hub of the test's own: what `huggingface_hub` asks of one, over folders of files."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "c0ffee" + "0" * 34


class FakeHub:
    """``models`` are folders by hub name; ``refused`` are names with a status and the hub's error code.

    ``fetched`` are the paths of the files that were downloaded.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.models: dict[str, Path] = {}
        self.refused: dict[str, tuple[int, str]] = {}
        self.fetched: list[str] = []

    def answer(self, path: str, *, head: bool) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body."""
        parts = path.split("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        if name in self.refused:
            status, code = self.refused[name]
            return status, {"X-Error-Code": code, "X-Error-Message": "as the hub says it"}, b""
        folder = self.models.get(name)
        if folder is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if api:
            return 200, {"Content-Type": "application/json"}, _about(name, folder, parts[4])
        file = folder / "/".join(parts[4:])  # OWNER/NAME/resolve/COMMIT/FILE
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        if not head:
            self.fetched.append(file.name)
        content = file.read_bytes()
        return 200, {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": COMMIT}, content


def _about(name: str, folder: Path, asked: str) -> bytes:
    if asked == "revision":
        return json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode()
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    tree = [
        {
            "type": "file",
            "path": file.name,
            "size": file.stat().st_size,
            "oid": _digest(file.read_bytes()),
        }
        for file in files
    ]
    return json.dumps(tree).encode()


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Running on a port of loopback."""
    hub: FakeHub

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(head=True)

        def do_GET(self) -> None:
            self._answer(head=False)

        def _answer(self, *, head: bool) -> None:
            status, headers, body = hub.answer(self.path, head=head)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if not head:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub = FakeHub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_ENDPOINT does, which the library reads when it is imported."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
