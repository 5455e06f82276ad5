"""The page in a real browser, on real stacks. Playwright's blocking interface, so no test here is async."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from millpond.local.server import free_port
from millpond.local.stack_file import StackFile
from tests.acceptance.conftest import MILLPOND
from tests.conftest import skip_or_fail

# Kept by CI: what the page looks like, for a person to look at.
SCREENSHOTS = Path(__file__).parents[1] / "screenshots"
WIDTHS = (1280, 390)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
# What a simulated row writes stands between two of these in its prompt.
ECHO = "@@"
PATIENCE_MS = 20_000
# A job whose prompt has this fails, and succeeds when it is retried.
FLAKY = "stumble"
SLOTS = 16


def until(condition: Callable[[], Any], why: str, timeout_s: float = 30.0) -> Any:
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"not within {timeout_s:g} s: {why}")
        time.sleep(0.05)
    return value


@dataclass(frozen=True, slots=True)
class Server:
    """A running ``millpond up`` and a client for its API."""

    url: str
    data: Path
    http: httpx.Client

    def submit(self, prompt: str, **fields: Any) -> str:
        answer = self.http.post("/v1/jobs", json={"prompt": prompt, **fields})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def say(self, text: str, **fields: Any) -> str:
        """The id of a job whose answer will be this text, from a simulated engine."""
        size = len(text.encode()) + 1
        return self.submit(f"{ECHO}{text}{ECHO}", max_tokens=size, min_tokens=size - 1, **fields)


@contextlib.contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Server]:
    data = folder / "data"
    output = folder / "up.txt"
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [MILLPOND, "up", "--data", data, "--port", "0", *arguments],
            stdout=sink,
            stderr=sink,
            cwd=folder,
            env={**os.environ, "COLUMNS": "200"},
        )
    try:
        until(
            lambda: "Ctrl-C" in output.read_text() or process.poll() is not None,
            "millpond up is ready",
            180.0,  # a first start compiles the kernels
        )
        assert process.poll() is None, output.read_text()
        about = StackFile.read(data)
        assert about is not None
        with httpx.Client(base_url=about.api_url, timeout=30.0) as http:
            yield Server(about.api_url, data, http)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(40.0)


def make_key(server: Server, *arguments: str) -> str:
    command = [MILLPOND, "keys", "create", "--data", server.data, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        skip_or_fail("there is no chromium here")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="package")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real model."""
    with running(tmp_path_factory.mktemp("real"), "--set", "grace_s=1") as server:
        yield server


@pytest.fixture(scope="package")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A worker with 16 slots, a thousand bytes a second in each, that says what it is told to."""
    costs = {"decode_s_per_step": 0.01, "decode_s_per_row": 0.0, "prefill_s_per_token": 0.0005}
    faults = {"echo_marker": ECHO, "flaky_marker": FLAKY}
    setting = json.dumps({"tokens_per_step": 10, "costs": costs, "faults": faults})
    with running(
        tmp_path_factory.mktemp("simulated"),
        *("--engine", "simulated", "--set", f"slots={SLOTS}", "--set", "grace_s=1"),
        *("--set", "max_attempts=1", "--set", f"simulated={setting}"),
    ) as server:
        yield server


@pytest.fixture(scope="package")
def keyed(simulated: Server) -> Iterator[Server]:
    """Another API of the same queue, which asks for keys."""
    about = StackFile.read(simulated.data)
    assert about is not None
    port = free_port()
    process = subprocess.Popen(
        [
            *(MILLPOND, "api", "--redis-url", about.redis_url, "--port", str(port)),
            *("--set", "engine=simulated", "--set", "auth=on"),
        ],
        cwd=simulated.data,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=url, timeout=30.0) as http:
            until(lambda: _answers(http), "the second API answers")
            yield Server(url, simulated.data, http)
    finally:
        process.terminate()
        process.wait(20.0)


def _answers(http: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return http.get("/readyz").status_code == 200
    return False


class Visitor:
    """One person's browser. Nothing that the page does may be reported on its console."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.complaints: list[str] = []
        self.requested: list[str] = []
        self.received_bytes = 0
        self._browser = browser
        self._url = url
        self._contexts = [browser.new_context(viewport={"width": 1280, "height": 900})]
        self.page = self._watched(self._contexts[0].new_page())

    def _watched(self, page: Page) -> Page:
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (self.complaints.append("a dialog"), dialog.dismiss()))
        page.on("request", lambda request: self.requested.append(request.url))
        return page

    def open(self, fragment: str = "") -> Page:
        self.page.goto(f"{self._url}/{fragment}")
        return self.page

    def elsewhere(self, fragment: str = "") -> Page:
        """The same address in another browser, which knows nothing."""
        self._contexts.append(self._browser.new_context(viewport={"width": 1280, "height": 900}))
        page = self._watched(self._contexts[-1].new_page())
        page.goto(f"{self._url}/{fragment}")
        return page

    def look(self, name: str) -> None:
        """Screenshots, wide and narrow, light and dark; each without a finding of axe's, nor too wide."""
        SCREENSHOTS.mkdir(exist_ok=True)
        for scheme in ("light", "dark"):
            self.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            for width in WIDTHS:
                self.page.set_viewport_size({"width": width, "height": 900 if width > 500 else 844})
                path = SCREENSHOTS / f"{name}-{width}-{scheme}.png"
                self.page.screenshot(path=path, full_page=True)
                wide = self.page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, f"{name} needs {wide} pixels of {width}"
                if (scheme, width) in ((("light", 1280), ("dark", 390))):
                    assert self._findings() == [], (name, scheme, width)
        self.page.emulate_media(color_scheme="light", reduced_motion="no-preference")
        self.page.set_viewport_size({"width": 1280, "height": 900})

    def _findings(self) -> list[str]:
        """What axe finds that is serious or worse."""
        found = Axe().run(self.page).response["violations"]
        return [
            f"{one['id']}: {one['help']}: {[node['target'] for node in one['nodes']]}"
            for one in found
            if one["impact"] in ("serious", "critical")
        ]

    def close(self) -> None:
        for context in self._contexts:
            context.close()
        assert self.complaints == []
        outside = [url for url in self.requested if not url.startswith((self._url, "blob:"))]
        assert outside == []


Visit = Callable[[Server], Visitor]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    visitors: list[Visitor] = []

    def start(server: Server) -> Visitor:
        visitors.append(Visitor(browser, server.url))
        return visitors[-1]

    yield start
    for visitor in visitors:
        visitor.close()
