"""The storage of batch files, over a local folder and over a server that speaks S3."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from millpond.batches.storage import BLOCK_BYTES, Storage
from millpond.errors import InvalidRequestError, StorageUnavailableError


@pytest.fixture(params=["folder", "s3"])
def storage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Storage]:
    if request.param == "folder":
        yield Storage(str(tmp_path / "files"))
        return
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().makedirs("bucket", exist_ok=True)
    yield Storage("s3://bucket/files")
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_objects_come_and_go(storage: Storage) -> None:
    storage.write("a", b"one\n")
    storage.write("b", b"two\n")
    assert b"".join(storage.blocks(["b", "a"])) == b"two\none\n"
    parts = [("b", 4), ("a", 4)]
    assert b"".join(storage.span(parts, 0, 8)) == b"two\none\n"
    assert b"".join(storage.span(parts, 2, 6)) == b"o\non"
    assert b"".join(storage.span(parts, 5, 6)) == b"n"
    storage.write("a", b"another\n")
    assert storage.read("a") == b"another\n"
    storage.remove(["a", "never-written"])
    with pytest.raises(StorageUnavailableError):
        storage.read("a")
    assert storage.read("b") == b"two\n"


def test_an_object_of_several_blocks(storage: Storage) -> None:
    block = bytes(range(256)) * 4096
    with storage.create("large") as file:
        for _ in range(BLOCK_BYTES // len(block) + 2):
            file.write(block)
    read = 0
    for part in storage.blocks(["large"]):
        assert part == (block * 2)[read % len(block) :][: len(part)]
        read += len(part)
    assert read == (BLOCK_BYTES // len(block) + 2) * len(block)


@pytest.mark.parametrize("url", ["nonsense://x", "s3"])
def test_a_place_that_cannot_be(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if url == "s3":  # a folder of this name
        assert Storage(url).remove(["a"]) is None
        return
    with pytest.raises(InvalidRequestError, match="files_url"):
        Storage(url)
