"""Why a process ended, judged by the end of its log. Pure except for reading the file."""

from pathlib import Path

import orjson

TAIL_BYTES = 64 * 1024
MAX_CHARS = 400
_SPEAKERS = ("millpond worker: ", "millpond api: ", "millpond background: ")


def last_words(log: Path, since_byte: int) -> str | None:
    """The last line that names a cause, of what the log has got since that byte."""
    try:
        with log.open("rb") as file:
            file.seek(max(since_byte, log.stat().st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        if (cause := _cause(line.strip())) is not None:
            return cause[:MAX_CHARS]
    return None


def _cause(line: str) -> str | None:
    """What a line says, if it is an error's: plain text, or a log line above the level of info."""
    if not line.startswith("{"):
        for speaker in _SPEAKERS:
            line = line.removeprefix(speaker)
        return line or None
    try:
        fields = orjson.loads(line)
    except ValueError:
        return line
    if not isinstance(fields, dict) or fields.get("level") in ("info", "debug"):
        return None
    details = [str(fields[name]) for name in ("cause", "kind") if name in fields]
    return ": ".join([str(fields.get("event", "")), *details]) or None
