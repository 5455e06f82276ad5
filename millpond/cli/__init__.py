"""The ``millpond`` command: up, submit, result, watch, cancel, queue, run-batch, plan, keys, tenants."""

import sys

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from millpond.batch_file import first_error
from millpond.cli import jobs, keys, plan, run_batch, tenants, up
from millpond.errors import MillpondError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A durable Redis queue and a batching worker for LLM inference.",
)
app.command("up")(up.up)
app.command("submit")(jobs.submit)
app.command("result")(jobs.result)
app.command("watch")(jobs.watch)
app.command("cancel")(jobs.cancel)
app.command("queue")(jobs.queue)
app.command("run-batch")(run_batch.run_batch)
app.command("plan")(plan.plan)
app.add_typer(keys.app, name="keys")
app.add_typer(tenants.app, name="tenants")


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
