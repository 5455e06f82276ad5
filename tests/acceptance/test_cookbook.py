"""Each recipe of docs/cookbook.md, run as it stands against a real ``millpond up``.

What it prints, and what the page says that it prints, must both look as expected. With the knob
MILLPOND_COOKBOOK=smollm2-135m the recipes run with that model, and -s shows what the page should say.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from millpond.local.server import free_port
from tests.acceptance.conftest import MILLPOND
from tests.conftest import skip_or_fail
from tests.knobs import COOKBOOK

PAGE = (Path(__file__).parents[2] / "docs" / "cookbook.md").read_text()
LIMIT_S = 60.0
# What each recipe prints, whatever the model.
EXPECTED = {
    "curl": r'\["succeeded",".+",\{"prompt_tokens":\d+,"completion_tokens":\d+\}\]\n',
    "The Python client": r"succeeded (stop|length) \d+\n.+\n",
    "OpenAI's client": r".+\n\d+ tokens\n",
    "A subscriber in Python": r"listening\nstarted\nfinished\nsucceeded \d+ tokens\n",
    "A subscriber in Node": r"listening\nstarted\nfinished\nsucceeded \d+ tokens\n",
    "A batch file": r'rows 2, failed 0, .+\n\["a",200,".+"\]\n\["b",200,".+"\]\n',
    "JSON by a schema": r"\['born', 'city', 'name'\] int\n\{.+\}\n",
    "A webhook receiver": r"202\nlistening\njob\.succeeded \d+ tokens\n",
    "cron": r"2\n",
    "Priorities": r"succeeded with others still to do: True\n",
    "Cancel": r"cancelled True\n",
    "A deadline": r"expired\ndeadline_exceeded\n",
    "A vote": r'\["\w+",[1-8]\]\n',
}


@dataclass(frozen=True)
class Block:
    """``language`` is followed by what the test has to know: ``background``."""

    language: str
    text: str

    @property
    def background(self) -> bool:
        return self.language.endswith(" background")


def _recipes() -> dict[str, list[Block]]:
    recipes = {}
    for section in re.split(r"^## \d+\. ", PAGE, flags=re.MULTILINE)[1:]:
        title, _, rest = section.partition("\n")
        found = re.findall(r"^```(\S[^\n]*)\n(.*?)^```$", rest, re.MULTILINE | re.DOTALL)
        recipes[title] = [Block(*block) for block in found]
    return recipes


RECIPES = _recipes()


class Kitchen:
    """A folder with a running stack."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._receiver_port = str(free_port())

    def run(self, blocks: list[Block]) -> str:
        """What the recipe prints: first what is in front, then what was started beside it."""
        printed = ""
        with self._beside([block for block in blocks if block.background]) as beside:
            for block in blocks:
                if not block.background:
                    printed += self._run(block)
            for process in beside:
                out, _ = process.communicate(timeout=LIMIT_S)
                assert process.returncode == 0
                printed += "listening\n" + out
        return printed

    @contextmanager
    def _beside(self, blocks: list[Block]) -> Iterator[list["subprocess.Popen[str]"]]:
        started: list[subprocess.Popen[str]] = []
        try:
            for block in blocks:
                process = subprocess.Popen(
                    self._command(block), cwd=self.folder, stdout=subprocess.PIPE, text=True
                )
                started.append(process)
                assert process.stdout is not None
                assert process.stdout.readline() == "listening\n"
            yield started
        finally:
            for process in started:
                process.kill()
                process.wait()
                assert process.stdout is not None
                process.stdout.close()

    def _run(self, block: Block) -> str:
        if block.language in ("text", "jsonl"):
            return ""
        ended = subprocess.run(
            self._command(block),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            text=True,
            timeout=LIMIT_S,
            check=True,
        )
        return "" if block.language == "cron" else ended.stdout

    def _command(self, block: Block) -> list[str]:
        text = block.text.replace("8123", self._receiver_port)
        match block.language.split()[0]:
            case "python":
                return [sys.executable, "-u", "-c", text]
            case "js":
                (self.folder / "subscriber.mjs").write_text(text)
                return ["node", "subscriber.mjs"]
            case "cron":
                line = text.split(maxsplit=5)[5].replace("\\%", "%")
                return ["sh", "-c", line.replace("/srv/millpond", str(self.folder))]
            case _:
                return ["bash", "-c", text]


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kitchen]:
    for tool in ("curl", "jq"):
        if shutil.which(tool) is None:
            skip_or_fail(f"no {tool}, which the recipes use")
    folder = tmp_path_factory.mktemp("cookbook")
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    served = f'model = "{COOKBOOK}"' if COOKBOOK else 'engine = "simulated"'
    (folder / "millpond.toml").write_text(f'{served}\nwebhook_allow = ["127.0.0.1"]\nport = 0\n')
    [requests] = [block for block in RECIPES["A batch file"] if block.language == "jsonl"]
    (folder / "requests.jsonl").write_text(requests.text)
    with (folder / "up.txt").open("wb") as sink:
        stack = subprocess.Popen(
            [MILLPOND, "up"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=sink,
            env={**os.environ, "COLUMNS": "200"},
        )
    assert stack.stdout is not None
    for line in stack.stdout:
        if b"Ctrl-C" in line:
            break
    assert stack.poll() is None, (folder / "up.txt").read_text()
    yield Kitchen(folder)
    stack.terminate()
    stack.communicate(timeout=LIMIT_S)


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_does_what_the_page_says(kitchen: Kitchen, title: str) -> None:
    if "js background" in [block.language for block in RECIPES[title]]:
        _install_redis(kitchen.folder)

    printed = kitchen.run(RECIPES[title])

    print(f"--- {title}\n{printed}---")
    assert re.fullmatch(EXPECTED[title], printed, re.DOTALL)


@pytest.mark.parametrize("title", RECIPES)
def test_the_page_shows_what_a_recipe_prints(title: str) -> None:
    shown = "".join(block.text for block in RECIPES[title] if block.language == "text")
    assert re.fullmatch(EXPECTED[title], shown, re.DOTALL)


def test_there_are_thirteen() -> None:
    assert list(RECIPES) == list(EXPECTED)
    assert len(RECIPES) == 13


def _install_redis(folder: Path) -> None:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no node and npm")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "redis@5"]
    installed = subprocess.run(command, cwd=folder, capture_output=True, timeout=LIMIT_S)
    if installed.returncode:
        pytest.skip("npm cannot install redis: no registry can be reached")
