"""The outermost layer: counts every answer, and turns uncaught errors into a plain 500."""

import asyncio
import time

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.answers.problems import INTERNAL_PROBLEM, STOPPING_PROBLEM
from api.metrics import Metrics
from millpond.logs import outline

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNMATCHED = "unmatched"

log = structlog.get_logger("millpond.api")


class ObserverMiddleware:
    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        answered = False

        async def observed(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                self._count(scope, message["status"], time.perf_counter() - started_s)
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except asyncio.CancelledError:
            # The server abandons answers that outlast its grace period, for example if Redis hangs.
            if not answered:
                await STOPPING_PROBLEM.response()(scope, receive, observed)
        except ClientDisconnect:
            log.debug("client_left", route=_route(scope))
        except Exception as error:
            log.error("unexpected_error", route=_route(scope), **outline(error))
            if not answered:
                await INTERNAL_PROBLEM.response()(scope, receive, observed)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = _route(scope)
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)


def _route(scope: Scope) -> str:
    """The route's template, never the requested path: there must be few labels."""
    return getattr(scope.get("route"), "path", UNMATCHED)
