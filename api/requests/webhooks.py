"""Whether a webhook may be called, asked before its job is accepted. Who sends it asks again."""

import asyncio
from collections.abc import Iterable

from millpond.errors import InvalidRequestError, NoWebhooksError, WebhookForbiddenError
from millpond.settings import Settings
from millpond.webhooks.guard import Guard, SystemResolver
from millpond.webhooks.senders import check_sent

# A name that takes longer is not refused here.
RESOLVE_TIMEOUT_S = 2.0


class WebhookCheck:
    def __init__(self, settings: Settings) -> None:
        self._resolver = SystemResolver()
        self._guard = Guard(self._resolver, settings.webhook_networks)
        self._redis_url = settings.redis_url

    async def check(self, url: str | None) -> None:
        """Raises WebhookForbiddenError for a name that means only addresses that may not be called, and
        NoWebhooksError where nobody sends them.

        A name that means nothing now passes: it may tomorrow.
        """
        if url is not None:
            for refusal in (await self.refusals([url])).values():
                raise refusal

    async def refusals(self, urls: Iterable[str]) -> dict[str, InvalidRequestError]:
        """What `check` would raise, of those URLs that it would refuse, after `RESOLVE_TIMEOUT_S` at most."""
        looks = {asyncio.create_task(self._refusal(url)): url for url in set(urls)}
        if not looks:
            return {}
        done, late = await asyncio.wait(looks, timeout=RESOLVE_TIMEOUT_S)
        for task in late:
            task.cancel()
        found = {looks[task]: task.result() for task in done}
        return {url: refusal for url, refusal in found.items() if refusal is not None}

    async def _refusal(self, url: str) -> InvalidRequestError | None:
        try:
            check_sent(self._redis_url)
            await self._guard.check(url)
        except (NoWebhooksError, WebhookForbiddenError) as error:
            return error
        except OSError:
            return None
        return None

    def close(self) -> None:
        self._resolver.close()
