"""``millpond doctor``: what is missing or unwise here, and what to change."""

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from millpond.cli.options import (
    DataFlag,
    EngineFlag,
    ModelFlag,
    QueueFlag,
    RedisFlag,
    SetFlag,
    parse_assignments,
)
from millpond.doctor.engine import examine_engine
from millpond.doctor.findings import Finding, Level, error, ok
from millpond.doctor.machine import examine_machine
from millpond.doctor.model import examine_model
from millpond.doctor.server import examine_server
from millpond.errors import ServerNotFoundError
from millpond.local.server import find_server
from millpond.local.stack_file import StackFile
from millpond.settings import Settings, load_settings

_MARKS: dict[Level, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "warning": ("warn", "yellow"),
    "error": ("FAIL", "bold red"),
}


def doctor(
    model: ModelFlag = None,
    engine: EngineFlag = None,
    redis_url: RedisFlag = None,
    queue: QueueFlag = None,
    data: DataFlag = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    set_: SetFlag = None,
) -> None:
    """Check server, queue, machine, model and engine. The exit status is 1 if anything fails."""
    settings = load_settings(
        parse_assignments(set_),
        model=model,
        engine=engine,
        redis_url=redis_url,
        queue=queue,
        data_dir=data,
    )
    found = asyncio.run(_examine(settings))
    failed = any(finding.level == "error" for finding in found)
    if json_:
        print(
            json.dumps(
                {"ok": not failed, "findings": [dataclasses.asdict(f) for f in found]}, indent=2
            )
        )
    else:
        Console(highlight=False).print(_table(found))
    raise typer.Exit(int(failed))


async def _examine(settings: Settings) -> list[Finding]:
    stack = StackFile.read(settings.data_dir)
    given = "redis_url" in settings.model_fields_set
    if stack is not None and not given:
        settings = settings.model_copy(update={"redis_url": stack.redis_url, "queue": stack.queue})
    server = await examine_server(settings) if given or stack else [_own_server(settings.data_dir)]
    return [
        *server,
        *examine_machine(settings),
        *examine_model(settings),
        *await examine_engine(settings),
    ]


def _own_server(data_dir: Path) -> Finding:
    """No stack runs, and no server is named: the one that would be started."""
    try:
        return ok("server", f"no stack runs in {data_dir}/; millpond up starts {find_server()}")
    except ServerNotFoundError as missing:
        return error("server", str(missing), "pip install 'millpond[embedded]'")


def _table(found: list[Finding]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for finding in found:
        mark, style = _MARKS[finding.level]
        text = Text(finding.found)
        if finding.advice is not None:
            text.append(f"\n-> {finding.advice}", style)
        table.add_row(Text(mark, style), finding.topic, text)
    return table
