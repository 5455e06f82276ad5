"""Who is asking. Every route learns its tenant here and nowhere else."""

from typing import Annotated

from fastapi import Depends, Request

from millpond.queue import DEFAULT_TENANT


async def current_tenant(request: Request) -> str:
    """The tenant whose jobs this request may see. One for all, until there are keys."""
    return DEFAULT_TENANT


Tenant = Annotated[str, Depends(current_tenant)]
