"""The ``millpond`` command."""

import sys
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from millpond import __version__
from millpond.cli import (
    batch,
    bench,
    chat,
    dead,
    doctor,
    files,
    jobs,
    keys,
    models,
    plan,
    queue_view,
    run_batch,
    services,
    tenants,
    top,
    up,
    url,
    webhooks,
)
from millpond.errors import MillpondError
from millpond.openai.batch_file import first_error

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A durable Redis queue and a batching worker for LLM inference.",
)


def _version(asked: bool) -> None:
    if asked:
        print(f"millpond {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """What holds for all commands."""


app.command("up")(up.up)
app.command("submit")(jobs.submit)
app.command("result")(jobs.result)
app.command("watch")(jobs.watch)
app.command("cancel")(jobs.cancel)
app.command("chat")(chat.chat)
app.command("queue")(queue_view.queue)
app.command("top")(top.top)
app.command("url")(url.url)
app.command("run-batch")(run_batch.run_batch)
app.command("worker")(services.worker)
app.command("api")(services.api)
app.command("background")(services.background)
app.command("plan")(plan.plan)
app.command("doctor")(doctor.doctor)
app.command("bench")(bench.bench)
app.add_typer(batch.app, name="batch")
app.add_typer(dead.app, name="dead")
app.add_typer(files.app, name="files")
app.add_typer(keys.app, name="keys")
app.add_typer(models.app, name="models")
app.add_typer(tenants.app, name="tenants")
app.add_typer(webhooks.app, name="webhooks")


def main() -> None:
    """Errors that a person can mend are one line on standard error and exit status 2."""
    try:
        app()
    except ValidationError as error:
        _complain(first_error(error))
    except MillpondError as error:
        _complain(str(error))


def _complain(message: str) -> None:
    Console(stderr=True, highlight=False).print(f"[red]millpond:[/red] {escape(message)}")
    sys.exit(2)
