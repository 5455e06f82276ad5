"""Who is asking. Every route learns its caller here and nowhere else, and names the scope it needs."""

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from api.access.gate import Caller
from api.access.rate_headers import remember_budgets
from api.services import Api
from millpond.access.api_keys import Scope
from millpond.errors import LimitExceededError

_bearer = HTTPBearer(
    auto_error=False, scheme_name="bearer", description="An API key: `Authorization: Bearer mp_...`"
)
_header = APIKeyHeader(
    name="X-API-Key",
    auto_error=False,
    scheme_name="header",
    description="The same, where a proxy "
    "needs Authorization for itself. `Authorization` counts before it.",
)


class Needs:
    """A dependency: the caller, if the key has this scope."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(
        self,
        request: Request,
        api: Api,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
        header: Annotated[str | None, Depends(_header)],
    ) -> Caller:
        """See `Gate.admit`."""
        token = header if bearer is None else bearer.credentials
        try:
            caller, budgets = await api.gate.admit(token, self.scope)
        except LimitExceededError as error:
            remember_budgets(request.scope, error.budgets)
            raise
        remember_budgets(request.scope, budgets)
        return caller


Submitter = Annotated[Caller, Depends(Needs(Scope.SUBMIT))]
Reader = Annotated[Caller, Depends(Needs(Scope.READ))]
Admin = Annotated[Caller, Depends(Needs(Scope.ADMIN))]
