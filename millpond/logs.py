"""Structured logs: one JSON object a line on standard error, or plain text on a terminal.

Prompts and generated text are never logged; ids and counts are.
"""

import logging
import sys
import traceback
from collections.abc import MutableMapping
from typing import Any

import structlog

MAX_FRAMES = 8


def outline(error: BaseException) -> dict[str, Any]:
    """What may be logged of an exception: its type and where it was raised. Its text may hold a prompt."""
    frames = [f"{f.filename}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
    return {"kind": type(error).__name__, "frames": frames[-MAX_FRAMES:]}


def _outlined(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replaces a traceback, which would contain the exception's text."""
    given = event.pop("exc_info", None)
    if given is True:
        given = sys.exc_info()
    error = given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        event.update(outline(error))
    return event


def configure_logs(level: str, **context: Any) -> None:
    """Set up logging for this process; ``context`` (such as process="worker") is on every line."""
    renderer: Any = (
        structlog.dev.ConsoleRenderer()
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _outlined,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**context)


class StructlogHandler(logging.Handler):
    """Routes the libraries' logs through the process's own log, without the texts of exceptions."""

    def emit(self, record: logging.LogRecord) -> None:
        # asyncio puts the task, and in it the exception's text, below the first line.
        message = record.getMessage().partition("\n")[0]
        kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
        extra = {} if kind is None else {"kind": kind}
        structlog.get_logger().log(record.levelno, message, logger=record.name, **extra)
