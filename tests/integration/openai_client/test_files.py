"""``/v1/files`` with the official client."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest

from millpond.local.server import RedisServer
from tests.integration.conftest import RunningApi, StartApi, make_key
from tests.integration.openai_client.conftest import client_of

LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n'
LIMIT_BYTES = 100_000


@pytest.fixture
async def api(
    redis_server: RedisServer, start_api: StartApi, tmp_path: Path
) -> AsyncIterator[RunningApi]:
    settings = {"data_dir": tmp_path, "max_file_bytes": LIMIT_BYTES}
    async with start_api(redis_server.url, auth="on", **settings) as running:
        yield running


@pytest.fixture
async def client(api: RunningApi) -> AsyncIterator[openai.AsyncOpenAI]:
    key = (await make_key(api))["Authorization"].removeprefix("Bearer ")
    async with client_of(api, api_key=key) as made:
        yield made


async def test_a_file_comes_and_goes(
    api: RunningApi, client: openai.AsyncOpenAI, tmp_path: Path
) -> None:
    made = await client.files.create(
        file=("requests.jsonl", LINE),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3_600},
    )
    assert (made.object, made.purpose, made.bytes) == ("file", "batch", len(LINE))
    assert made.filename == "requests.jsonl"
    assert made.expires_at == made.created_at + 3_600
    assert await client.files.retrieve(made.id) == made
    assert (await client.files.content(made.id)).content == LINE
    part = await client.files.content(made.id, extra_headers={"Range": "bytes=5-"})
    assert (part.response.status_code, part.content) == (206, LINE[5:])
    assert part.response.headers["Content-Range"] == f"bytes 5-{len(LINE) - 1}/{len(LINE)}"
    with pytest.raises(openai.APIStatusError) as behind:
        await client.files.content(made.id, extra_headers={"Range": f"bytes={len(LINE)}-"})
    assert (behind.value.status_code, behind.value.code) == (416, "range_not_satisfiable")
    assert behind.value.response.headers["Content-Range"] == f"bytes */{len(LINE)}"
    [stored] = (tmp_path / "files").iterdir()
    assert stored.stat().st_mode & 0o077 == 0 or (tmp_path / "files").stat().st_mode & 0o077 == 0

    assert (await client.files.delete(made.id)).deleted
    with pytest.raises(openai.NotFoundError) as gone:
        await client.files.content(made.id)
    assert gone.value.code == "file_not_found"
    objects = await api.services.files.sweep()
    assert objects == [stored.name], "its bytes are left to the sweep"


async def test_the_synchronous_client(client: openai.AsyncOpenAI) -> None:
    def use() -> bytes:
        with openai.OpenAI(base_url=client.base_url, api_key=client.api_key) as blocking:
            made = blocking.files.create(file=("a.jsonl", LINE), purpose="batch")
            assert [file.id for file in blocking.files.list()] == [made.id]
            return blocking.files.content(made.id).content

    assert await asyncio.to_thread(use) == LINE


async def test_lists_in_pages(client: openai.AsyncOpenAI) -> None:
    made = [
        (await client.files.create(file=(f"{i}.jsonl", LINE), purpose="batch")).id for i in range(5)
    ]
    page = await client.files.list(limit=2)
    assert [file.id for file in page.data] == made[:2:-1]
    assert page.has_more
    assert [file.id async for file in page] == made[::-1], "the client asks for the further pages"
    oldest = await client.files.list(order="asc", after=made[2], limit=2)
    assert [file.id for file in oldest.data] == made[3:]
    assert not oldest.has_more
    assert not (await client.files.list(purpose="batch_output")).data
    with pytest.raises(openai.NotFoundError, match="after"):
        await client.files.list(after="file-of-nobody")


async def test_another_tenants_file_is_not_there(
    api: RunningApi, client: openai.AsyncOpenAI
) -> None:
    made = await client.files.create(file=("a.jsonl", LINE), purpose="batch")
    other = (await make_key(api, tenant="other"))["Authorization"].removeprefix("Bearer ")
    async with client_of(api, api_key=other) as stranger:
        assert not (await stranger.files.list()).data
        for call in (stranger.files.retrieve, stranger.files.content, stranger.files.delete):
            with pytest.raises(openai.NotFoundError):
                await call(made.id)
    assert (await client.files.content(made.id)).content == LINE


@pytest.mark.parametrize(
    ("form", "file", "field", "words"),
    [
        ({"purpose": "fine-tune"}, LINE, "purpose", "fine-tune is not supported; it must be batch"),
        ({}, LINE, "purpose", "is missing"),
        ({"purpose": "batch"}, None, "file", "is missing"),
        ({"purpose": "batch"}, b"", "file", "is empty"),
        ({"purpose": "batch", "colour": "red"}, LINE, "colour", "not known"),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at"}
            | {"expires_after[seconds]": "60"},
            LINE,
            "expires_after.seconds",
            "3600 or more",
        ),
    ],
)
async def test_a_bad_form_names_its_field(
    api: RunningApi, form: dict[str, str], file: bytes | None, field: str, words: str
) -> None:
    files = {"other": b"x"} if file is None else {"file": ("a.jsonl", file)}
    if file is None:
        files = {}
        form = {**form, "purpose": "batch"}
    headers = await make_key(api)
    answer = await api.http.post(
        "/v1/files",
        files=[(name, (None, value)) for name, value in form.items()]
        + [("file", part) for part in files.values()],
        headers=headers,
    )
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == field
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


async def test_a_body_that_is_no_form(api: RunningApi) -> None:
    headers = await make_key(api)
    answer = await api.http.post("/v1/files", content=LINE, headers=headers)
    assert answer.status_code == 415
    broken = {**headers, "Content-Type": "multipart/form-data; boundary=x"}
    answer = await api.http.post("/v1/files", content=b"--y", headers=broken)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_a_file_that_is_too_long(api: RunningApi, client: openai.AsyncOpenAI) -> None:
    """By its announced length, as it comes in chunks, and by the file's own length within the form."""
    for num_bytes in (LIMIT_BYTES * 2, LIMIT_BYTES + 1):
        with pytest.raises(openai.APIStatusError) as told:
            await client.files.create(file=("a.jsonl", b"x" * num_bytes), purpose="batch")
        assert told.value.status_code == 413
        assert told.value.param == "file"
        assert str(LIMIT_BYTES) in told.value.message

    async def chunks() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(40):
            yield b"x" * 10_000

    headers = {**await make_key(api), "Content-Type": "multipart/form-data; boundary=x"}
    try:
        answer = await api.http.post("/v1/files", content=chunks(), headers=headers)
    except httpx.WriteError:  # it was refused while it was still being sent
        return
    assert answer.status_code == 413
    assert answer.json()["error"]["param"] == "file"


async def test_a_tenant_that_has_enough(
    redis_server: RedisServer, start_api: StartApi, tmp_path: Path
) -> None:
    settings = {"data_dir": tmp_path, "max_tenant_file_bytes": 2 * len(LINE)}
    async with start_api(redis_server.url, **settings) as api, client_of(api) as client:
        first = await client.files.create(file=("a.jsonl", LINE), purpose="batch")
        await client.files.create(file=("b.jsonl", LINE), purpose="batch")
        with pytest.raises(openai.RateLimitError, match="limit is"):
            await client.files.create(file=("c.jsonl", LINE), purpose="batch")
        await client.files.delete(first.id)
        await client.files.create(file=("c.jsonl", LINE), purpose="batch")


async def test_a_storage_that_is_away(
    redis_server: RedisServer, start_api: StartApi, tmp_path: Path
) -> None:
    blocked = tmp_path / "no-folder"
    blocked.write_text("")
    settings = {"files_url": str(blocked)}
    async with start_api(redis_server.url, **settings) as api, client_of(api) as client:
        with pytest.raises(openai.InternalServerError) as told:
            await client.files.create(file=("a.jsonl", LINE), purpose="batch")
        assert told.value.status_code == 503
        assert told.value.code == "storage_unavailable"
        assert not (await client.files.list()).data
