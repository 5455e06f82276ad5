"""``millpond files``: batch files of the API."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from millpond.cli.options import DataFlag
from millpond.cli.over_http import (
    READ_BYTES,
    Api,
    ApiFlag,
    JsonFlag,
    KeyFlag,
    OutputFlag,
    open_api,
    print_json,
)
from millpond.cli.tables import folding_table, utc_time

app = typer.Typer(no_args_is_help=True, help="Files of the API: uploaded, and written by batches.")

IdArgument = Annotated[str, typer.Argument(metavar="FILE_ID")]
Limit = Annotated[int, typer.Option(min=1, help="Files, at most.")]


@app.command()
def upload(
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    json_: JsonFlag = False,
    api_url: ApiFlag = None,
    key: KeyFlag = None,
    data: DataFlag = None,
) -> None:
    """Upload a JSONL file of requests and print its id."""
    with open_api(api_url, key, data) as api:
        made = api.upload(path)
    if json_:
        print_json(made)
    else:
        print(made["id"])


@app.command("list")
def list_files(
    limit: Limit = 50,
    purpose: Annotated[str | None, typer.Option(help="batch or batch_output.")] = None,
    json_: JsonFlag = False,
    api_url: ApiFlag = None,
    key: KeyFlag = None,
    data: DataFlag = None,
) -> None:
    """Show files, the newest first."""
    with open_api(api_url, key, data) as api:
        found = list(api.pages("/files", limit, purpose=purpose))
    if json_:
        print_json(found)
        return
    table = folding_table("file", "purpose", "bytes", "created (UTC)", "name", whole=("file",))
    for file in found:
        created = utc_time(file["created_at"] * 1000)
        table.add_row(file["id"], file["purpose"], f"{file['bytes']:,}", created, file["filename"])
    Console(highlight=False).print(table if table.rows else "No files.")


@app.command()
def show(
    file_id: IdArgument, api_url: ApiFlag = None, key: KeyFlag = None, data: DataFlag = None
) -> None:
    """Print what the API says of a file."""
    with open_api(api_url, key, data) as api:
        print_json(api.get(f"/files/{file_id}"))


@app.command()
def content(
    file_id: IdArgument,
    output: OutputFlag = None,
    api_url: ApiFlag = None,
    key: KeyFlag = None,
    data: DataFlag = None,
) -> None:
    """Print the lines of a file. Those of an output that still grows are the ones that there are."""
    with open_api(api_url, key, data) as api:
        save(api, file_id, output)


@app.command()
def delete(
    file_id: IdArgument, api_url: ApiFlag = None, key: KeyFlag = None, data: DataFlag = None
) -> None:
    """Delete a file."""
    with open_api(api_url, key, data) as api:
        api.delete(f"/files/{file_id}")


def save(api: Api, file_id: str, output: Path | None) -> None:
    """Copy a file of the API to that path, or to standard output."""
    console = Console(stderr=True, highlight=False)
    with api.content(file_id) as answer:
        if output is None:
            for block in answer.iter_bytes(READ_BYTES):
                sys.stdout.buffer.write(block)
        else:
            bar = Progress(TextColumn(output.name), BarColumn(), DownloadColumn(), console=console)
            with bar, output.open("wb") as file:
                task = bar.add_task("", total=int(answer.headers["Content-Length"]))
                for block in answer.iter_bytes(READ_BYTES):
                    file.write(block)
                    bar.update(task, advance=len(block))
        if answer.headers.get("X-Incomplete") == "true":
            rows = answer.headers["X-Rows"]
            console.print(f"[yellow]{rows} lines so far: the batch still runs.[/yellow]")
