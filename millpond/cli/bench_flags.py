"""From the flags of ``millpond bench`` to loads, limits and places. Raises InvalidRequestError."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import ValidationError

from millpond.bench.figures import LATENCIES
from millpond.bench.lengths import MAX_TOKENS
from millpond.bench.loads import ClosedLoop, Load, OpenLoop
from millpond.bench.places import OwnStack, Place, Server
from millpond.bench.variants import parse_varied, variant_name
from millpond.bench.workloads import FromFile, read_questions
from millpond.errors import InvalidRequestError
from millpond.local.stack_events import Say
from millpond.local.stack_file import StackFile
from millpond.openai.requests import CHAT, COMPLETIONS, Route
from millpond.settings import Settings, load_settings

API_KEY_VARIABLE = "OPENAI_API_KEY"
OURS = "millpond"
ROUTES: dict[str, Route] = {"chat": CHAT, "completions": COMPLETIONS}
DEFAULT_CONCURRENCY = "1,2,4,8,16,32"
MAX_SECONDS = 86_400.0

N = TypeVar("N", int, float)


def parse_loads(concurrency: str | None, rate: str | None, burst: int) -> list[Load]:
    """Those of both loops, none if neither is asked for."""
    loads: list[Load] = []
    if rate is None and burst != 1:
        raise InvalidRequestError("--burst", "belongs to --rate")
    if concurrency is not None:
        clients = _numbers("--concurrency", concurrency, int)
        loads += [_load("--concurrency", ClosedLoop, concurrency=number) for number in clients]
    if rate is not None:
        for per_s in _numbers("--rate", rate, float):
            loads.append(_load("--rate or --burst", OpenLoop, rate_per_s=per_s, burst=burst))
    return loads


def _load(field: str, kind: type[ClosedLoop | OpenLoop], **fields: float) -> Load:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidRequestError(field, f"{first['input']:g}: {first['msg']}") from error


def parse_counts(field: str, text: str, *, least: int) -> list[int]:
    """Such as the lengths and the batches of the frontier, in rising order."""
    found = sorted(_numbers(field, text, int))
    if found[0] < least or found[-1] > MAX_TOKENS:
        raise InvalidRequestError(
            field, f"{text!r} has a number that is not from {least} to {MAX_TOKENS:,}"
        )
    return found


def _numbers(field: str, text: str, kind: Callable[[str], N]) -> list[N]:
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        raise InvalidRequestError(field, f"{text!r} is no list of numbers, such as 1,2,4") from None
    if len(set(found)) < len(found):
        raise InvalidRequestError(field, f"{text!r} has a number twice")
    return found


def parse_limits(texts: Sequence[str]) -> dict[str, float]:
    limits = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in LATENCIES:
            raise InvalidRequestError("--limit", f"{name!r} is none of {', '.join(LATENCIES)}")
        try:
            limits[name] = float(value)
        except ValueError:
            limits[name] = math.nan
        if not 0 < limits[name] < math.inf:
            raise InvalidRequestError("--limit", f"{text!r} is not of the form NAME=MILLISECONDS")
    return limits


def check_seconds(seconds: float) -> float:
    if not 0 < seconds <= MAX_SECONDS:
        raise InvalidRequestError(
            "--seconds", f"must be above 0, at most {MAX_SECONDS:,.0f}", limit=MAX_SECONDS
        )
    return seconds


def check_route(name: str) -> Route:
    if name not in ROUTES:
        raise InvalidRequestError("--route", f"{name!r} is neither chat nor completions")
    return ROUTES[name]


def read_workload(field: str, path: Path) -> FromFile:
    try:
        return read_questions(field, path.read_bytes().splitlines())
    except OSError as error:
        raise InvalidRequestError(field, f"{path} cannot be read: {error.strerror}") from error


def servers(texts: Sequence[str], model: str | None, *, stream: bool) -> list[Place]:
    """``[NAME=]URL`` each; without a name it is the host."""
    api_key = os.environ.get(API_KEY_VARIABLE)
    found: dict[str, Place] = {}
    for text in texts:
        before, equals, after = text.partition("=")
        named = equals and "/" not in before
        url = (after if named else text).rstrip("/")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidRequestError("--url", f"{url!r} must begin with http:// or https://")
        if parts.username or parts.password or parts.query:
            raise InvalidRequestError("--url", "must have no user, password or query")
        name = before if named else parts.netloc
        if name in found:
            raise InvalidRequestError("--url", f"{name!r} is there twice; give names: NAME=URL")
        found[name] = Server(name, url, model, api_key, stream)
    return list(found.values())


def own_places(
    varied: Sequence[str],
    assigned: dict[str, str],
    flags: dict[str, Any],
    say: Say,
    *,
    stream: bool,
) -> list[Place]:
    """A stack for each variant; without any, the one that runs in the data folder if it serves the same.

    ``flags`` are settings by name, None if not given.
    """
    variants = parse_varied("--vary", varied)
    found: list[Place] = []
    for variant in variants:
        for name in variant:
            if flags.get(name) is not None or name in assigned:
                raise InvalidRequestError("--vary", f"{name} is given by another flag, too")
        settings = _settings(assigned | variant, flags)
        if not varied and (running := _running_place(settings, stream=stream)) is not None:
            return [running]
        found.append(OwnStack(variant_name(variant) or OURS, settings, variant, say, stream))
    return found


def frontier_place(assigned: dict[str, str], flags: dict[str, Any], say: Say) -> OwnStack:
    """It is started anew for every attempt, so a stack that runs already is of no use."""
    return OwnStack(OURS, _settings(assigned, flags), {}, say)


def _settings(assigned: dict[str, str], flags: dict[str, Any]) -> Settings:
    settings = load_settings(assigned, **flags)
    settings.preset()  # a wrong model is told before anything starts
    return settings


def _running_place(settings: Settings, *, stream: bool) -> Server | None:
    running = StackFile.read(settings.data_dir)
    if running is None or running.api_url is None or running.serves != settings.serves():
        return None
    api_key = os.environ.get(API_KEY_VARIABLE)
    return Server(OURS, f"{running.api_url}/v1", api_key=api_key, stream=stream)
