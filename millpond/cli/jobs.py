"""The commands of a client: submit, result, watch, cancel."""

import sys
from typing import Annotated

import orjson
import typer

from millpond.cli.connecting import open_client, run_with
from millpond.cli.following import Follower
from millpond.cli.options import DataFlag, QueueFlag, RedisFlag
from millpond.client import Client
from millpond.messages import JobRequest, JobResult, JobStatus, Priority, VoteKind

JobId = Annotated[str, typer.Argument(help="The id that submit printed.", show_default=False)]

FOREVER_S = 7 * 24 * 3600.0  # no job waits longer


def submit(
    prompt: Annotated[str, typer.Argument(help="The question, or - to read it from stdin.")],
    max_tokens: Annotated[int | None, typer.Option()] = None,
    n: Annotated[int, typer.Option("--n", help="How many texts to write.")] = 1,
    vote: Annotated[
        VoteKind | None,
        typer.Option(
            help="Let the n texts vote, by their boxed answers, a regex, or their exact text."
        ),
    ] = None,
    vote_pattern: Annotated[
        str | None, typer.Option(help="Of a vote by regex; its group is around the answer.")
    ] = None,
    temperature: Annotated[float | None, typer.Option()] = None,
    top_p: Annotated[float | None, typer.Option()] = None,
    top_k: Annotated[int | None, typer.Option()] = None,
    min_p: Annotated[float | None, typer.Option()] = None,
    repetition_penalty: Annotated[float | None, typer.Option()] = None,
    presence_penalty: Annotated[float, typer.Option()] = 0.0,
    frequency_penalty: Annotated[float, typer.Option()] = 0.0,
    seed: Annotated[int | None, typer.Option()] = None,
    stop: Annotated[list[str] | None, typer.Option(help="May be given several times.")] = None,
    loop_repeats: Annotated[
        int | None, typer.Option(help="End it when it repeats itself so often.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="One of the model's adapters.")] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it stands.")] = False,
    priority: Annotated[Priority, typer.Option()] = Priority.NORMAL,
    deadline_s: Annotated[float | None, typer.Option()] = None,
    webhook_url: Annotated[
        str | None, typer.Option(help="Told when the job has ended, by a signed POST.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait, and print the text as it comes.")
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="With --wait: the whole result as JSON.")
    ] = False,
    redis_url: RedisFlag = None,
    queue: QueueFlag = None,
    data: DataFlag = None,
) -> None:
    """Queue one prompt and print its job's id, or with --wait its text as it comes."""
    request = JobRequest(
        prompt=sys.stdin.read() if prompt == "-" else prompt,
        max_tokens=max_tokens,
        n=n,
        vote=vote,
        vote_pattern=vote_pattern,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        stop=stop or [],
        loop_repeats=loop_repeats,
        adapter=adapter,
        system=system,
        raw=raw,
        priority=priority,
        deadline_s=deadline_s,
        webhook_url=webhook_url,
    )

    async def call(client: Client) -> None:
        id = await client.submit(request)
        if not wait:
            print(id)
        elif json_:
            _show(await client.result(id, FOREVER_S))
        else:
            _exit_by(await Follower(client).follow(id))

    run_with(open_client, call, redis_url, queue, data)


def result(
    id: JobId,
    wait_s: Annotated[float, typer.Option("--wait", help="Seconds to wait for its end.")] = 0.0,
    redis_url: RedisFlag = None,
    queue: QueueFlag = None,
    data: DataFlag = None,
) -> None:
    """Print a job's result as JSON; exit status 1 unless it succeeded."""

    async def call(client: Client) -> None:
        if wait_s > 0:
            _show(await client.result(id, wait_s))
            return
        view = await client.get(id)
        if view.result is None:
            line = {"id": id, "status": view.status, "position": view.position}
            print(orjson.dumps(line).decode())
            raise typer.Exit(1)
        _show(view.result)

    run_with(open_client, call, redis_url, queue, data)


def watch(
    id: JobId, redis_url: RedisFlag = None, queue: QueueFlag = None, data: DataFlag = None
) -> None:
    """Print a job's text as it is written; of several the first, then the others."""

    async def call(client: Client) -> None:
        _exit_by(await Follower(client).follow(id))

    run_with(open_client, call, redis_url, queue, data)


def cancel(
    id: JobId, redis_url: RedisFlag = None, queue: QueueFlag = None, data: DataFlag = None
) -> None:
    """Cancel a job; harmless when it has ended. Prints its status."""

    async def call(client: Client) -> None:
        print(await client.cancel(id))

    run_with(open_client, call, redis_url, queue, data)


def _show(result: JobResult) -> None:
    """One JSON document on standard output; a failed job is exit status 1."""
    print(orjson.dumps(orjson.loads(result.to_json()), option=orjson.OPT_INDENT_2).decode())
    _exit_by(result)


def _exit_by(result: JobResult) -> None:
    if result.status is not JobStatus.SUCCEEDED:
        raise typer.Exit(1)
