"""One try: signs an event and posts it to its receiver."""

import asyncio
import datetime
import ssl
from dataclasses import dataclass
from typing import Self

import httpx
from standardwebhooks import Webhook

from background.webhooks.checked_transport import CheckedTransport
from millpond import __version__
from millpond.errors import WebhookForbiddenError
from millpond.webhooks.deliveries import Outcome
from millpond.webhooks.guard import Guard

# Of an answer's body nothing is used; what is read of it lets a receiver finish what it writes.
MAX_ANSWER_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Try:
    """``outcome`` is DELIVERED, GONE or RETRY; ``why`` says in a few words what went wrong.

    ``answered``: the receiver is alive, whatever it said.
    """

    outcome: Outcome
    why: str = ""
    answered: bool = False


class Sender:
    """Follows no redirect, uses no proxy, keeps no cookie and no connection."""

    def __init__(self, guard: Guard, timeout_s: float, tls: ssl.SSLContext | None = None) -> None:
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(
            transport=CheckedTransport(guard, tls),
            timeout=timeout_s,
            follow_redirects=False,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def send(self, url: str, secret: str, id: str, body: bytes) -> Try:
        """Never raises for what the receiver does or fails to do."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return _judge(await self._post(url, _headers(secret, id, body), body))
        except TimeoutError:
            return Try(Outcome.RETRY, f"no answer within {self._timeout_s:g} s")
        except WebhookForbiddenError as error:
            return Try(Outcome.RETRY, error.message)
        except httpx.ConnectError as error:
            return Try(Outcome.RETRY, f"cannot be connected to: {error}")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Try(Outcome.RETRY, type(error).__name__)

    async def _post(self, url: str, headers: dict[str, str], body: bytes) -> int:
        async with self._client.stream("POST", url, headers=headers, content=body) as answer:
            received = 0
            async for part in answer.aiter_raw():  # not unpacked: a few bytes could become many
                received += len(part)
                if received > MAX_ANSWER_BYTES:
                    break
            return answer.status_code


def _headers(secret: str, id: str, body: bytes) -> dict[str, str]:
    """Signed anew at each try: a receiver refuses a signature that is minutes old."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "content-type": "application/json",
        "accept-encoding": "identity",
        "connection": "close",
        "user-agent": f"millpond/{__version__}",
        "webhook-id": id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(id, now, body.decode()),
    }


def _judge(status: int) -> Try:
    if 200 <= status < 300:
        return Try(Outcome.DELIVERED, answered=True)
    if status == httpx.codes.GONE:
        return Try(Outcome.GONE, "answered 410: it wants no more", answered=True)
    if 300 <= status < 400:
        return Try(Outcome.RETRY, f"answered {status}: redirects are not followed", answered=True)
    return Try(Outcome.RETRY, f"answered {status}", answered=True)
