"""An HTTP transport that connects to the very addresses that a guard has let through."""

import ssl

import httpx

from millpond.webhooks.guard import DEFAULT_PORTS, Guard


class CheckedTransport(httpx.AsyncBaseTransport):
    """Resolves a name once, and puts the address that was checked in its place: in the connection alone.
    The Host header, the name in TLS and the one that the certificate must have stay the URL's.

    Raises WebhookForbiddenError, and httpx.ConnectError when no address can be connected to.
    """

    def __init__(self, guard: Guard, tls: ssl.SSLContext | None = None) -> None:
        self._guard = guard
        self._inner = httpx.AsyncHTTPTransport(
            verify=tls or ssl.create_default_context(),
            trust_env=False,  # a proxy would look up the name again
            # A connection is known by its address: another name's must not go through it.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        try:
            addresses = await self._guard.addresses(url.host, url.port or DEFAULT_PORTS[url.scheme])
        except OSError as error:
            raise httpx.ConnectError("its name has no address", request=request) from error
        refused: httpx.ConnectError | None = None
        for address in addresses:
            checked = httpx.Request(
                request.method,
                url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": url.host},
            )
            try:
                return await self._inner.handle_async_request(checked)
            except httpx.ConnectError as error:  # nothing was sent
                refused = error
        assert refused is not None, "the guard gave no address"
        raise refused

    async def aclose(self) -> None:
        await self._inner.aclose()
