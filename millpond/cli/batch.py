"""``millpond batch``: batches of the API, from a file to its results."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from millpond.cli.files import save
from millpond.cli.options import DataFlag, parse_assignments
from millpond.cli.over_http import (
    Api,
    ApiError,
    ApiFlag,
    JsonFlag,
    KeyFlag,
    OutputFlag,
    open_api,
    print_json,
)
from millpond.cli.tables import folding_table, utc_time

app = typer.Typer(no_args_is_help=True, help="Batches: files of requests, run when there is time.")

ENDED = ("completed", "failed", "expired", "cancelled")
LOOK_EVERY_S = 0.5
MAX_ERRORS_SHOWN = 20

IdArgument = Annotated[str, typer.Argument(metavar="BATCH_ID")]


@app.command()
def create(
    file: Annotated[str, typer.Argument(help="A path, or the id of an uploaded file.")],
    endpoint: Annotated[str, typer.Option(help="The route of all lines.")] = "/v1/chat/completions",
    window: Annotated[str, typer.Option(help="1h to 7d: then what has not run expires.")] = "24h",
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Kept with the batch.")
    ] = None,
    watch_: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    json_: JsonFlag = False,
    api_url: ApiFlag = None,
    key: KeyFlag = None,
    data: DataFlag = None,
) -> None:
    """Run a file of requests and print the batch's id."""
    with open_api(api_url, key, data) as api:
        id = api.upload(Path(file))["id"] if Path(file).is_file() else file
        body = {"input_file_id": id, "endpoint": endpoint, "completion_window": window}
        if metadata:
            body["metadata"] = parse_assignments(metadata)
        batch = api.post("/batches", body)
        if not json_:
            print(batch["id"])
        if watch_:
            batch = _follow(api, batch)
    if watch_:
        _end(batch, as_json=json_)
    elif json_:
        print_json(batch)


@app.command("list")
def list_batches(
    limit: Annotated[int, typer.Option(min=1, help="Batches, at most.")] = 50,
    json_: JsonFlag = False,
    api_url: ApiFlag = None,
    key: KeyFlag = None,
    data: DataFlag = None,
) -> None:
    """Show batches, the newest first."""
    with open_api(api_url, key, data) as api:
        found = list(api.pages("/batches", limit))
    if json_:
        print_json(found)
        return
    headings = ("batch", "status", "done", "failed", "total", "created (UTC)")
    table = folding_table(*headings, whole=("batch",))
    for batch in found:
        counts = batch["request_counts"]
        numbers = [f"{counts[name]:,}" for name in ("completed", "failed", "total")]
        created = utc_time(batch["created_at"] * 1000)
        table.add_row(batch["id"], batch["status"], *numbers, created)
    Console(highlight=False).print(table if table.rows else "No batches.")


@app.command()
def show(
    batch_id: IdArgument, api_url: ApiFlag = None, key: KeyFlag = None, data: DataFlag = None
) -> None:
    """Print what the API says of a batch."""
    with open_api(api_url, key, data) as api:
        print_json(api.get(f"/batches/{batch_id}"))


@app.command()
def cancel(
    batch_id: IdArgument, api_url: ApiFlag = None, key: KeyFlag = None, data: DataFlag = None
) -> None:
    """End a batch; what has ended is kept."""
    with open_api(api_url, key, data) as api:
        print(api.post(f"/batches/{batch_id}/cancel")["status"])


@app.command()
def results(
    batch_id: IdArgument,
    errors: Annotated[
        bool, typer.Option("--errors", help="The lines of rows that failed, instead.")
    ] = False,
    output: OutputFlag = None,
    api_url: ApiFlag = None,
    key: KeyFlag = None,
    data: DataFlag = None,
) -> None:
    """Print the output of a batch, as far as it is there."""
    with open_api(api_url, key, data) as api:
        batch = api.get(f"/batches/{batch_id}")
        file = batch["error_file_id" if errors else "output_file_id"]
        if file is None:
            kind = "failed lines" if errors else "results"
            raise ApiError(f"{batch_id} has no {kind}; it is {batch['status']}")
        save(api, file, output)


@app.command()
def watch(
    batch_id: IdArgument,
    json_: JsonFlag = False,
    api_url: ApiFlag = None,
    key: KeyFlag = None,
    data: DataFlag = None,
) -> None:
    """Follow a batch to its end. Exit status 1 unless every row succeeded."""
    with open_api(api_url, key, data) as api:
        batch = _follow(api, api.get(f"/batches/{batch_id}"))
    _end(batch, as_json=json_)


def _follow(api: Api, batch: dict[str, Any]) -> dict[str, Any]:
    """Until it has ended, with a bar on standard error."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True, highlight=False),
    )
    with progress:
        bar = progress.add_task("", total=None)
        while True:
            counts = batch["request_counts"]
            progress.update(
                bar,
                description=batch["status"],
                total=counts["total"] or None,
                completed=counts["completed"] + counts["failed"],
            )
            if batch["status"] in ENDED:
                return batch
            time.sleep(LOOK_EVERY_S)
            batch = api.get(f"/batches/{batch['id']}")


def _end(batch: dict[str, Any], *, as_json: bool) -> None:
    counts = batch["request_counts"]
    if as_json:
        print_json(batch)
    else:
        console = Console(stderr=True, highlight=False)
        for error in ((batch["errors"] or {}).get("data") or [])[:MAX_ERRORS_SHOWN]:
            place = "" if error["line"] is None else f"line {error['line']}: "
            console.print(f"{place}{error['message']}", markup=False)
        print(
            f"{batch['status']}: {counts['completed']} of {counts['total']} rows, "
            f"{counts['failed']} failed"
        )
    if batch["status"] != "completed" or counts["failed"]:
        raise typer.Exit(1)
