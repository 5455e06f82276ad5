"""What is installed works outside of the tree: the wheel, built from the sdist, without the tree in sight."""

import asyncio
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import httpx
import orjson
import pytest

from millpond import __version__
from tests.acceptance.conftest import until
from tests.acceptance.test_run_batch import outputs, request

ROOT = Path(__file__).parents[2]
# What the tests' own interpreter may see of the tree, the installed one must not.
CLEAN = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}


def run(*arguments: object, cwd: Path) -> str:
    done = subprocess.run(  # status and output are looked at together
        list(map(str, arguments)), cwd=cwd, env=CLEAN, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and nothing of the tree; what we depend on is lent to it."""
    folder = tmp_path_factory.mktemp("wheel")
    run(*(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT), cwd=folder)
    [wheel] = folder.glob("*.whl")
    assert list(folder.glob("*.tar.gz"))
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"),
        wheel,
        cwd=folder,
    )
    [packages] = (folder / "venv" / "lib").glob("python*/site-packages")
    # A path file that is found by another one is not read, so the tree's own stays unknown.
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "venv" / "bin"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A working directory with packages of the user's own that have our services' names."""
    for name in ("api", "worker", "background"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not yours')")
    return tmp_path


def test_it_is_the_wheel_and_takes_no_names(environment: Path, tmp_path: Path) -> None:
    assert run(environment / "millpond", "--version", cwd=tmp_path).strip() == (
        f"millpond {__version__}"
    )
    look = (
        "import importlib.util as u, millpond; "
        "print(millpond.__file__, u.find_spec('api'), u.find_spec('worker'))"
    )
    file, api, worker = run(environment / "python", "-c", look, cwd=tmp_path).split()
    assert Path(file).is_relative_to(environment.parent)
    assert (api, worker) == ("None", "None")


async def test_up_works_outside_of_the_tree(environment: Path, elsewhere: Path) -> None:
    printed = elsewhere / "up.txt"
    with printed.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *(environment / "millpond", "up", "--engine", "simulated", "--port", "0"),
            stdout=sink,
            stderr=sink,
            cwd=elsewhere,
            env=CLEAN,
        )
    try:
        await until(
            lambda: "Ctrl-C stops" in printed.read_text() or process.returncode is not None,
            60.0,
            "the stack is ready",
        )
        assert process.returncode is None, printed.read_text()
        command = (environment / "millpond", "submit", "hi", "--wait", "--json")
        out = await asyncio.to_thread(run, *command, cwd=elsewhere)
        assert orjson.loads(out)["status"] == "succeeded"
        url = run(environment / "millpond", "url", cwd=elsewhere).strip()
        async with httpx.AsyncClient(base_url=url) as http:
            page = (await http.get("/")).text
            script = page.partition('<script type="module" src="')[2].partition('"')[0]
            assert (await http.get(f"/{script}")).status_code == 200, "the page is in the wheel"
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 40.0) == 0


def test_run_batch_works_outside_of_the_tree(environment: Path, elsewhere: Path) -> None:
    (elsewhere / "in.jsonl").write_bytes(request("a") + request("b"))
    run(
        *(environment / "millpond", "run-batch", "-i", "in.jsonl", "-o", "out.jsonl"),
        *("--engine", "simulated"),
        cwd=elsewhere,
    )
    assert set(outputs(elsewhere / "out.jsonl")) == {"a", "b"}
