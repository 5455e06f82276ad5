"""Loads the Lua files and runs them. Each file is one atomic operation; its header declares what it
needs: ``-- keys:`` names of `QUEUE_KEYS` (or `BATCH_KEYS`), ``-- uses:`` preludes, ``-- ARGV:``, and
``-- flags:`` of the server's for scripts: ``allow-oom`` runs on a full server, ``no-writes`` only reads.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha1
from importlib import resources
from itertools import chain
from typing import Any, Protocol, cast

from redis.asyncio import Redis
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ConnectionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TimeoutError,
    TryAgainError,
)

from millpond.errors import QueueUnavailableError

Arg = str | bytes | int | float
# Of the arguments of one call that takes many items: bounds the time of the server's one thread.
BYTES_A_CALL = 1 << 20

# Errors that mean "try again later": the server is away, starting, or cannot write.
UNAVAILABLE = (
    ConnectionError,
    TimeoutError,
    BusyLoadingError,
    ReadOnlyError,
    OutOfMemoryError,
    TryAgainError,
    AskError,
    OSError,
)
_UNAVAILABLE_CODES = (
    "LOADING",
    "READONLY",
    "OOM",
    "MASTERDOWN",
    "UNBLOCKED",
    "CLUSTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "BUSY",
)


def unavailable(error: BaseException) -> QueueUnavailableError | None:
    """The QueueUnavailableError to raise instead, if ``error`` means that Redis cannot serve now.

    Inside a script the server's state shows only in the error's text, so the text is searched.
    """
    text = str(error)
    if isinstance(error, UNAVAILABLE) or (
        isinstance(error, RedisError) and any(code in text for code in _UNAVAILABLE_CODES)
    ):
        return QueueUnavailableError(f"Redis cannot serve now: {text or type(error).__name__}")
    return None


@contextmanager
def raising_unavailable() -> Iterator[None]:
    """Translates errors that mean that Redis cannot serve now into QueueUnavailableError."""
    try:
        yield
    except Exception as error:
        raise unavailable(error) or error from error


@dataclass(frozen=True, slots=True)
class Replicas:
    """How many replicas must have what a script has written, and how long that may take."""

    number: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Script:
    source: bytes
    sha: str
    key_names: tuple[str, ...]


@functools.cache
def load_script(name: str, package: str = "millpond.queue") -> Script:
    """The script of the package's folder ``lua``."""
    body = _read(package, name)
    names = tuple(_header(body, "keys"))
    table = ", ".join(f"{key} = KEYS[{i}]" for i, key in enumerate(names, 1))
    preludes = [_read(package, prelude) for prelude in _header(body, "uses")]
    shebang = " ".join(["#!lua", *(f"flags={flag}" for flag in _header(body, "flags"))])
    source = "\n".join([shebang, f"local K = {{ {table} }}", *preludes, body]).encode()
    return Script(source, sha1(source, usedforsecurity=False).hexdigest(), names)


def _read(package: str, name: str) -> str:
    return (resources.files(package) / "lua" / f"{name}.lua").read_text(encoding="utf-8")


def _header(source: str, field: str) -> list[str]:
    found = re.search(rf"^-- {field}: (.+)$", source, re.MULTILINE)
    return found.group(1).split() if found else []


class KeyNames(Protocol):
    """The full name of each key that a script may ask for."""

    def __getitem__(self, name: str) -> str: ...


class Scripts:
    """Runs scripts on one queue's keys, and loads them again after the server has restarted.

    Raises QueueUnavailableError when the server cannot serve.
    """

    def __init__(self, redis: Redis, keys: KeyNames, package: str = "millpond.queue") -> None:
        self._redis = redis
        self._keys = keys
        self._package = package

    def key_list(self, script: Script) -> list[str]:
        return [self._keys[name] for name in script.key_names]

    async def run(self, name: str, *args: Arg) -> Any:
        script = load_script(name, self._package)
        keys = self.key_list(script)
        with raising_unavailable():
            try:
                return await self._redis.evalsha(script.sha, len(keys), *keys, *args)
            except NoScriptError:
                return await self._redis.eval(script.source, len(keys), *keys, *args)  # type: ignore[arg-type]

    async def run_many(
        self, name: str, calls: Sequence[Sequence[Arg]], replicas: Replicas | None = None
    ) -> list[Any]:
        """Run the script once for each call, in one round trip; each run is atomic by itself.

        Returns the answers in order. The first error, if any, is raised after all have run. So is
        QueueUnavailableError if fewer ``replicas`` have got all of it in time.
        """
        script = load_script(name, self._package)
        keys = self.key_list(script)
        answers = await self._pipeline("EVALSHA", script.sha, keys, calls, replicas)
        again = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if again:
            # By source, not by digest: the server could lose a loaded script before it runs.
            left = [calls[i] for i in again]
            retried = await self._pipeline("EVAL", script.source, keys, left, replicas)
            for i, answer in zip(again, retried, strict=True):
                answers[i] = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise unavailable(answer) or answer
        return answers

    async def run_batched(
        self,
        name: str,
        size: int,
        items: Sequence[Sequence[Arg]],
        *,
        first: Sequence[Arg] = (),
        last: Sequence[Arg] = (),
        replicas: Replicas | None = None,
    ) -> list[Any]:
        """For scripts that take many items: calls of at most ``size`` items, in one round trip.

        Each call gets ``first``, its items' arguments and ``last``. Returns the joined answers. See
        `run_many` for ``replicas``.
        """
        calls = [
            [*first, *chain.from_iterable(part), *last]
            for part in _parts(items, size, BYTES_A_CALL)
        ]
        if len(calls) == 1 and replicas is None:
            return cast(list[Any], await self.run(name, *calls[0]))
        return list(chain.from_iterable(await self.run_many(name, calls, replicas)))

    async def _pipeline(
        self,
        command: str,
        script: Arg,
        keys: list[str],
        calls: Sequence[Sequence[Arg]],
        replicas: Replicas | None,
    ) -> list[Any]:
        with raising_unavailable():
            async with self._redis.pipeline(transaction=False) as pipe:
                for args in calls:
                    pipe.execute_command(command, script, len(keys), *keys, *args)
                if (
                    replicas is not None
                ):  # on this very connection: it waits for what that has written
                    timeout_ms = round(replicas.timeout_s * 1000)
                    pipe.execute_command("WAIT", replicas.number, timeout_ms)
                answers = await pipe.execute(raise_on_error=False)
        if replicas is not None:
            _check_replicated(replicas, answers.pop())
        return answers


def _check_replicated(replicas: Replicas, answer: Any) -> None:
    """Raises QueueUnavailableError, unless ``WAIT`` has answered that enough of them have it."""
    if isinstance(answer, Exception):
        raise unavailable(answer) or answer
    if answer < replicas.number:
        raise QueueUnavailableError(
            f"{answer} of {replicas.number} replicas (submit_replicas) had it within "
            f"{replicas.timeout_s:g} s; it may be accepted all the same, so send it again under the "
            "same id or Idempotency-Key"
        )


def _parts(
    items: Sequence[Sequence[Arg]], most: int, most_bytes: int
) -> Iterator[list[Sequence[Arg]]]:
    """The items in order, at most so many and so many bytes in each part; a longer one stands alone."""
    part: list[Sequence[Arg]] = []
    num_bytes = 0
    for item in items:
        size = sum(len(arg) for arg in item if isinstance(arg, str | bytes))
        if part and (len(part) == most or num_bytes + size > most_bytes):
            yield part
            part, num_bytes = [], 0
        part.append(item)
        num_bytes += size
    if part:
        yield part
