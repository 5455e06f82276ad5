"""The ``RateLimit`` and ``RateLimit-Policy`` fields (IETF draft-ietf-httpapi-ratelimit-headers)."""

from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from millpond.access.rate_limits import WINDOW_S, Budget

_STATE = "budgets"


def remember_budgets(scope: Scope, budgets: Sequence[Budget]) -> None:
    """Report them in the headers of the answer to this request."""
    if budgets:
        scope["state"][_STATE] = budgets


def policy_field(budgets: Sequence[Budget]) -> str:
    return ", ".join(f'"{budget.name}";q={budget.limit};w={WINDOW_S}' for budget in budgets)


def limit_field(budgets: Sequence[Budget]) -> str:
    return ", ".join(f'"{budget.name}";r={budget.left};t={budget.reset_s}' for budget in budgets)


class RateHeadersMiddleware:
    """Adds both fields to answers of requests whose key has limits, errors included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})

        async def told(message: Message) -> None:
            budgets = state.get(_STATE)
            if message["type"] == "http.response.start" and budgets:
                fields = [
                    (b"ratelimit-policy", policy_field(budgets).encode()),
                    (b"ratelimit", limit_field(budgets).encode()),
                ]
                message = {**message, "headers": [*message["headers"], *fields]}
            await send(message)

        await self._app(scope, receive, told)
