"""``make install`` with the Python that fits, whatever lies in ``.venv``. The Pythons here are stubs."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUB = """#!/bin/sh
case "$1 $2" in
    "-c "*) echo VERSION ;;
    "-m venv") rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
    "-m pip") echo "VERSION $*" >> "$INSTALLED" ;;
esac
"""


class Make:
    def __init__(self, folder: Path) -> None:
        self.venv = folder / "venv"
        self.installed = folder / "installed.txt"
        self._bin = folder / "bin"
        self._bin.mkdir()
        for version in ("3.10", "3.11", "3.13"):
            self._stub(f"python{version}", version)

    def _stub(self, name: str, version: str) -> None:
        (self._bin / name).write_text(STUB.replace("VERSION", version))
        (self._bin / name).chmod(0o700)

    def default_python_is(self, version: str) -> None:
        self._stub("python3", version)

    def install(self, *arguments: str) -> tuple[int, str]:
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "MAKEFLAGS")}
        environment |= {
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "INSTALLED": str(self.installed),
        }
        done = subprocess.run(
            ["make", "-C", str(ROOT), "install", f"VENV={self.venv}", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
        )
        return done.returncode, done.stdout + done.stderr

    def pythons(self) -> list[str]:
        """The versions that packages were installed into, in order."""
        lines = self.installed.read_text().splitlines() if self.installed.exists() else []
        return list(dict.fromkeys(line.split()[0] for line in lines))


@pytest.fixture
def make(tmp_path: Path) -> Make:
    made = Make(tmp_path)
    made.default_python_is("3.11")
    return made


def test_a_python_that_is_too_old_is_named_before_anything_is_installed(make: Make) -> None:
    code, printed = make.install("PYTHON=python3.10")
    assert code != 0
    assert "python3.10 is Python 3.10. Millpond needs 3.11 or newer" in printed
    assert "make install PYTHON=python3.11" in printed
    assert not make.installed.exists()
    assert not make.venv.exists()


def test_an_environment_of_another_python_is_made_anew(make: Make) -> None:
    """One that an old Python began used to stay, so that the right Python failed in it, too."""
    make.default_python_is("3.10")
    make.venv.mkdir()
    (make.venv / "bin").mkdir()
    (make.venv / "bin" / "python").write_text(STUB.replace("VERSION", "3.10"))
    (make.venv / "bin" / "python").chmod(0o700)
    (make.venv / ".created").touch()
    code, printed = make.install("PYTHON=python3.11")
    assert code == 0, printed
    assert "has Python 3.10; making it anew with 3.11" in printed
    assert make.pythons() == ["3.11"]
    assert make.install("PYTHON=python3.13")[0] == 0
    assert make.pythons() == ["3.11", "3.13"]


def test_an_environment_that_fits_is_kept(make: Make) -> None:
    assert make.install("PYTHON=python3.13")[0] == 0
    make.installed.unlink()
    code, printed = make.install()  # where python3 is another one
    assert code == 0, printed
    assert not make.installed.exists(), "nothing is installed again"


def test_the_first_python_that_fits_is_found(make: Make) -> None:
    make.default_python_is("3.10")
    assert make.install()[0] == 0
    assert make.pythons()[0] >= "3.11"
