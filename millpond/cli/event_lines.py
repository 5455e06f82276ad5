"""What happens to a stack, one line an event: for people, in colour on a terminal, or as JSON."""

import datetime

import orjson
from rich.console import Console
from rich.text import Text

from millpond.local.stack_events import Level, StackEvent

_STYLES: dict[Level, str] = {"info": "", "good": "green", "warning": "yellow", "error": "red"}


class EventLines:
    """Prints events to standard output as they come; call it with each."""

    def __init__(self, console: Console, *, as_json: bool = False) -> None:
        self._console = console
        self._as_json = as_json

    def __call__(self, event: StackEvent) -> None:
        now = datetime.datetime.now().astimezone()
        if self._as_json:
            fields = {
                "timestamp": now.isoformat(timespec="milliseconds"),
                "source": event.source,
                "level": event.level,
                "message": event.message,
            }
            print(orjson.dumps(fields).decode(), flush=True)
            return
        style = _STYLES[event.level]
        line = Text.assemble(
            (f"{now:%H:%M:%S} ", "dim"), (f"{event.source:<11}", "bold"), (event.message, style)
        )
        self._console.print(line, soft_wrap=True)
