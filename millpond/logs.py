"""Structured logs: one JSON object a line on standard error, or plain text on a terminal.

Prompts and generated text are never logged; ids and counts are.
"""

import logging
import sys
from typing import Any

import structlog


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
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**context)
