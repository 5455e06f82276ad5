"""Whether a webhook may be called, asked before its job is accepted. Who sends it asks again."""

import asyncio
from collections.abc import Iterable

from millpond.errors import WebhookForbiddenError
from millpond.settings import Settings
from millpond.webhooks.guard import Guard, SystemResolver

# A name that takes longer is not refused here.
RESOLVE_TIMEOUT_S = 2.0


class WebhookCheck:
    def __init__(self, settings: Settings) -> None:
        self._resolver = SystemResolver()
        self._guard = Guard(self._resolver, settings.webhook_networks)

    async def check(self, url: str | None) -> None:
        """Raises WebhookForbiddenError for a name that means only addresses that may not be called.

        One that means nothing now passes: it may tomorrow.
        """
        if url is not None and await self.forbidden([url]):
            raise WebhookForbiddenError

    async def forbidden(self, urls: Iterable[str]) -> set[str]:
        """Those of the URLs that `check` would refuse, after `RESOLVE_TIMEOUT_S` at most."""
        looks = {asyncio.create_task(self._refuses(url)): url for url in set(urls)}
        if not looks:
            return set()
        done, late = await asyncio.wait(looks, timeout=RESOLVE_TIMEOUT_S)
        for task in late:
            task.cancel()
        return {looks[task] for task in done if task.result()}

    async def _refuses(self, url: str) -> bool:
        try:
            await self._guard.check(url)
        except WebhookForbiddenError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        self._resolver.close()
