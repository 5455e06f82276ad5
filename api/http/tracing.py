"""A span for each request, under the caller's trace if its ``traceparent`` names one."""

from typing import TYPE_CHECKING

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from millpond.tracing import traceparent

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

_STATE = "traceparent"
# Asked for every few seconds by machines: their spans would hide the others.
UNTRACED = frozenset({"/healthz", "/readyz", "/metrics"})


def traceparent_of(request: Request) -> str | None:
    """The trace that jobs of this request belong to."""
    found: str | None = request.scope.get("state", {}).get(_STATE)
    return found


class TracingMiddleware:
    """Names and attributes are those of OpenTelemetry's conventions for HTTP servers."""

    def __init__(self, app: ASGIApp, tracer: "Tracer") -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            await self._app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        given = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        method = scope["method"]
        with self._tracer.start_as_current_span(
            method,
            TraceContextTextMapPropagator().extract(given),
            SpanKind.SERVER,
            {
                "http.request.method": method,
                "url.scheme": scope["scheme"],
                "url.path": scope["path"],
            },
        ) as span:
            if (own := traceparent(span.get_span_context())) is not None:
                scope.setdefault("state", {})[_STATE] = own

            async def observed(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    span.set_attribute("http.response.status_code", status)
                    if status >= 500:
                        span.set_attribute("error.type", str(status))
                        span.set_status(StatusCode.ERROR)
                    route = getattr(scope.get("route"), "path", None)
                    if route is not None:
                        span.set_attribute("http.route", route)
                        span.update_name(f"{method} {route}")
                await send(message)

            await self._app(scope, receive, observed)
