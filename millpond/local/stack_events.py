"""Events in a stack's life, and what ends it, worded for the person who runs it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from millpond.errors import MillpondError

Level = Literal["info", "good", "warning", "error"]


@dataclass(frozen=True, slots=True)
class StackEvent:
    """``source`` is the process concerned, or ``stack``."""

    source: str
    message: str
    level: Level = "info"

    def __str__(self) -> str:
        return f"{self.source}: {self.message}"


Say = Callable[[StackEvent], None]


class StackError(MillpondError):
    """The stack cannot start: another one has the data folder, or a child does not come up."""

    code = "stack_failed"
