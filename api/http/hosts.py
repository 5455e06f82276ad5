"""Which host names this API answers to: by DNS rebinding a browser can be led to it under any other."""

import ipaddress

from starlette.types import ASGIApp, Receive, Scope, Send

from api.answers.problems import Problem
from millpond.settings import Settings, is_loopback

HOST_PROBLEM = Problem(
    421,
    "host_not_allowed",
    "this API does not answer to the name in the Host header; the setting allowed_hosts has the names",
)


class Hosts:
    """With keys any name is accepted, since pages of other origins have no key. It is also accepted where
    ``auth`` is off on purpose."""

    def __init__(self, settings: Settings) -> None:
        self._names = frozenset(name.lower() for name in settings.allowed_hosts)
        self._loopback = is_loopback(settings.host) and not settings.auth_required
        self._any = "*" in self._names or not (self._names or self._loopback)

    def allow(self, host: str) -> bool:
        """``host`` is the header, with or without a port."""
        name = _without_port(host).lower().removesuffix(".")
        return (
            self._any
            or name in self._names
            or (self._loopback and (is_loopback(name) or name.endswith(".localhost")))
        )


class HostMiddleware:
    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request without the header, as in HTTP/1.0, does not come from a browser."""
        if scope["type"] == "http":
            given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
            if not all(map(self._hosts.allow, given)):
                await HOST_PROBLEM.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _without_port(host: str) -> str:
    try:
        return str(ipaddress.IPv6Address(host))
    except ValueError:
        pass
    name, colon, port = host.rpartition(":")
    return name.strip("[]") if colon and port.isdigit() else host.strip("[]")
