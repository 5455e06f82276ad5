"""How the commands of files and batches reach the API: its address, the key, and errors in one line."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import orjson
import typer

from millpond.cli.options import NoStackError, running_stack_file
from millpond.errors import MillpondError
from millpond.settings import load_settings

# An upload of 200 MB may take its time.
TIMEOUT_S = 600.0
READ_BYTES = 256 * 1024

ApiFlag = Annotated[
    str | None, typer.Option("--api-url", help="The API's address; else that of the running stack.")
]
KeyFlag = Annotated[
    str | None,
    typer.Option("--api-key", envvar="OPENAI_API_KEY", help="If the API asks for keys."),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="OpenAI's objects, for programs.")]
OutputFlag = Annotated[
    Path | None,
    typer.Option("--output", "-o", dir_okay=False, help="Write there, not to standard output."),
]


class ApiError(MillpondError):
    """The API cannot be reached, or refused."""

    code = "api_error"


class Api:
    """The routes of OpenAI's API. All methods raise ApiError."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def get(self, path: str, **parameters: Any) -> dict[str, Any]:
        given = {name: value for name, value in parameters.items() if value is not None}
        return self._answer("GET", path, params=given)

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._answer("POST", path, json=body)

    def delete(self, path: str) -> dict[str, Any]:
        return self._answer("DELETE", path)

    def upload(self, path: Path) -> dict[str, Any]:
        with path.open("rb") as file:
            form = {"purpose": "batch"}
            return self._answer("POST", "/files", data=form, files={"file": (path.name, file)})

    def pages(self, path: str, limit: int, **parameters: Any) -> Iterator[dict[str, Any]]:
        """The entries of a list, up to ``limit``, however many pages they are on."""
        after, left = None, limit
        while left > 0:
            page = self.get(path, after=after, limit=min(left, 100), **parameters)
            yield from page["data"]
            left -= len(page["data"])
            if not page["has_more"]:
                return
            after = page["last_id"]

    @contextlib.contextmanager
    def content(self, file_id: str) -> Iterator[httpx.Response]:
        """The bytes of a file, as they come."""
        with _api_errors(), self._http.stream("GET", f"/files/{file_id}/content") as answer:
            if answer.is_error:
                answer.read()
            _check(answer)
            yield answer

    def _answer(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        with _api_errors():
            answer = self._http.request(method, path, **options)
        _check(answer)
        return dict(answer.json())


@contextlib.contextmanager
def open_api(api_url: str | None, key: str | None, data: Path | None) -> Iterator[Api]:
    """Raises NoStackError if no address is given and no stack with an API runs."""
    if api_url is None:
        api_url = running_stack_file(load_settings(data_dir=data)).api_url
    if api_url is None:
        raise NoStackError("the stack that runs has no API; give --api-url")
    base = api_url.rstrip("/").removesuffix("/v1") + "/v1"
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=base, headers=headers, timeout=TIMEOUT_S) as http:
        yield Api(http)


def print_json(value: Any) -> None:
    print(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


@contextlib.contextmanager
def _api_errors() -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ApiError(f"the API cannot be reached: {error}") from error


def _check(answer: httpx.Response) -> None:
    if answer.is_success:
        return
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"{answer.url} answers with {answer.status_code}; is that Millpond's API?"
    raise ApiError(message)
