"""Endpoints: receivers of webhooks that are registered once, for all events of a tenant or some of them."""

import base64
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from redis.asyncio import Redis

from millpond.errors import InvalidRequestError
from millpond.messages import TENANT_PATTERN
from millpond.messages.webhook_url import WebhookUrl
from millpond.queue.keys import Keys
from millpond.queue.scripts import Scripts, raising_unavailable
from millpond.webhooks.events import WebhookEvent

# Bounds what the end of a job costs.
MAX_ENDPOINTS = 16
SECRET_PREFIX = "whsec_"  # noqa: S105 (what all secrets of Standard Webhooks begin with)
SECRET_BYTES = 32
ALL_EVENTS = "*"
_ID = re.compile(r"we_[a-z2-7]{16}")
_URL: TypeAdapter[str] = TypeAdapter(WebhookUrl)


def new_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(os.urandom(SECRET_BYTES)).decode()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``events`` empty: all of them. ``failure`` says why the last try failed that did, if any has.

    ``disabled_ms``: when it answered 410; it is sent nothing since.
    """

    id: str
    tenant: str
    url: str
    events: tuple[str, ...]
    created_ms: int
    disabled_ms: int | None = None
    delivered_ms: int | None = None
    failed_ms: int | None = None
    failure: str = ""


class Endpoints:
    """The endpoints of one queue. All methods raise QueueUnavailableError when Redis cannot serve."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._scripts = Scripts(redis, keys)

    async def add(
        self, tenant: str, url: str, events: Collection[WebhookEvent] = ()
    ) -> tuple[Endpoint, str]:
        """Register an endpoint. Returns it with its secret, by which the receiver checks signatures.

        Whether its address may be called is not asked here. Raises InvalidRequestError naming the field.
        """
        if not TENANT_PATTERN.fullmatch(tenant):
            raise InvalidRequestError("tenant", f"must match {TENANT_PATTERN.pattern}", limit=32)
        check_webhook_url(url)
        id = "we_" + base64.b32encode(os.urandom(10)).decode().lower()
        secret = new_secret()
        chosen = " ".join(sorted(set(events))) or ALL_EVENTS
        args = (id, tenant, url, chosen, secret, MAX_ENDPOINTS)
        created = await self._scripts.run("endpoint_add", *args)
        if created is None:
            raise InvalidRequestError(
                "tenant", f"has {MAX_ENDPOINTS} endpoints, its limit", limit=MAX_ENDPOINTS
            )
        return Endpoint(id, tenant, url, _events(chosen), int(created)), secret

    async def remove(self, id: str) -> bool:
        """False: there is no such endpoint. What is pending for it is dropped."""
        return bool(_ID.fullmatch(id)) and bool(await self._scripts.run("endpoint_remove", id))

    async def list(self) -> list[Endpoint]:
        """All endpoints, oldest first, disabled ones too."""
        with raising_unavailable():
            members: Any = await self._redis.smembers(self._keys["endpoint_ids"])
            ids = [id.decode() for id in members]
            async with self._redis.pipeline(transaction=False) as pipe:
                for id in ids:
                    pipe.hgetall(self._keys["endpoint"] + id)
                records = await pipe.execute()
        found = [_endpoint(id, record) for id, record in zip(ids, records, strict=True) if record]
        return sorted(found, key=lambda endpoint: (endpoint.created_ms, endpoint.id))

    async def secret(self, tenant: str) -> str:
        """What signs that which the ``webhook_url`` of this tenant's jobs gets; made when first asked
        for, or first needed. Raises InvalidRequestError.
        """
        if not TENANT_PATTERN.fullmatch(tenant):
            raise InvalidRequestError("tenant", f"must match {TENANT_PATTERN.pattern}", limit=32)
        key = self._keys["webhook_secrets"]
        with raising_unavailable():
            await self._redis.hsetnx(key, tenant, new_secret())
            secret: Any = await self._redis.hget(key, tenant)
        return str(secret.decode())


def check_webhook_url(url: str) -> None:
    """Whether the text is one. Raises InvalidRequestError."""
    try:
        _URL.validate_python(url)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise InvalidRequestError("webhook_url", message) from None


def _events(text: str) -> tuple[str, ...]:
    return () if text == ALL_EVENTS else tuple(text.split())


def _endpoint(id: str, record: dict[bytes, bytes]) -> Endpoint:
    fields = {name.decode(): value.decode() for name, value in record.items()}

    def when(name: str) -> int | None:
        return int(fields[name]) if name in fields else None

    return Endpoint(
        id=id,
        tenant=fields["tenant"],
        url=fields["url"],
        events=_events(fields["events"]),
        created_ms=int(fields["created"]),
        disabled_ms=when("disabled"),
        delivered_ms=when("delivered"),
        failed_ms=when("failed"),
        failure=fields.get("failure", ""),
    )
