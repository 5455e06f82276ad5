"""``stack.json``: a running stack's description of itself, in its data folder, for the commands."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

STACK_FILE = "stack.json"


@dataclass(frozen=True, slots=True)
class StackFile:
    """``serves``: the settings that decide its output, see `Settings.serves`."""

    pid: int
    redis_url: str
    queue: str
    api_url: str | None
    serves: dict[str, Any]

    @classmethod
    def read(cls, data_dir: Path) -> "StackFile | None":
        """The stack that runs on this data folder, if one does."""
        try:
            found = cls(**orjson.loads((data_dir / STACK_FILE).read_bytes()))
            os.kill(found.pid, 0)
        except (OSError, ValueError, TypeError):
            return None
        return found

    def write(self, data_dir: Path) -> None:
        partial = data_dir / f"{STACK_FILE}.partial"
        partial.touch(mode=0o600)  # the URL may hold a password
        partial.write_bytes(orjson.dumps(self))
        partial.rename(data_dir / STACK_FILE)

    @staticmethod
    def remove(data_dir: Path) -> None:
        (data_dir / STACK_FILE).unlink(missing_ok=True)
