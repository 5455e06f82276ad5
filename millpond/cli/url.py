"""``millpond url``: where the running stack is, for scripts."""

from typing import Annotated

import typer

from millpond.cli.options import DataFlag, NoStackError, running_stack_file
from millpond.settings import load_settings


def url(
    redis: Annotated[bool, typer.Option("--redis", help="The Redis server's instead.")] = False,
    data: DataFlag = None,
) -> None:
    """Print the address of the running stack's API, as millpond up wrote it down."""
    stack = running_stack_file(load_settings(data_dir=data))
    found = stack.redis_url if redis else stack.api_url
    if found is None:
        raise NoStackError("the stack that runs has no API")
    print(found)
