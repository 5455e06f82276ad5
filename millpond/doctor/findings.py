"""One thing that was looked at."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """``advice`` is what to change, with its command where there is one; None where all is well.

    An error keeps something from working or loses jobs; a warning may be intended.
    """

    topic: str
    level: Level
    found: str
    advice: str | None = None


def ok(topic: str, found: str) -> Finding:
    return Finding(topic, "ok", found)


def warning(topic: str, found: str, advice: str) -> Finding:
    return Finding(topic, "warning", found, advice)


def error(topic: str, found: str, advice: str) -> Finding:
    return Finding(topic, "error", found, advice)
