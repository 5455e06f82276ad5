"""Flags that several commands share, and how they find the running stack."""

from pathlib import Path
from typing import Annotated

import typer

from millpond.errors import InvalidRequestError, MillpondError
from millpond.local.stack_file import StackFile
from millpond.settings import Settings, load_settings


class NoStackError(MillpondError):
    """Nothing says where the queue is."""

    code = "no_stack"


ModelFlag = Annotated[
    str | None, typer.Option("--model", help="A preset, a model folder, a GGUF file or a hub name.")
]
EngineFlag = Annotated[
    str | None, typer.Option("--engine", help="transformers, vllm, remote or simulated.")
]
DtypeFlag = Annotated[
    str | None, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")
]
RedisFlag = Annotated[
    str | None, typer.Option("--redis-url", help="Use this server instead of an embedded one.")
]
DataFlag = Annotated[
    Path | None, typer.Option("--data", help="Folder of the embedded server and the logs.")
]
QueueFlag = Annotated[str | None, typer.Option("--queue", help="The queue's name.")]
SetFlag = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting, such as lease_s=30."),
]


def parse_assignments(pairs: list[str] | None) -> dict[str, str]:
    """``--set`` values. Raises InvalidRequestError for one without an equals sign."""
    assigned = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InvalidRequestError("--set", f"{pair!r} is not of the form NAME=VALUE")
        assigned[name.strip()] = value
    return assigned


def client_settings(redis_url: str | None, queue: str | None, data: Path | None) -> Settings:
    """Where a client command looks: the server that is given, else the stack on the data folder.

    Of a stack it has the model, too. Raises NoStackError.
    """
    settings = load_settings(redis_url=redis_url, queue=queue, data_dir=data)
    if "redis_url" in settings.model_fields_set:
        return settings
    stack = running_stack_file(settings)
    return settings.model_copy(
        update={**stack.serves, "redis_url": stack.redis_url, "queue": queue or stack.queue}
    )


def running_stack_file(settings: Settings) -> StackFile:
    """What the stack on the settings' data folder says of itself. Raises NoStackError."""
    stack = StackFile.read(settings.data_dir)
    if stack is None:
        raise NoStackError(
            f"no stack runs in {settings.data_dir}/; start one with millpond up, or give --redis-url"
        )
    return stack
