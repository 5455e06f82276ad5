"""API keys: who may do what over HTTP. They are stored in Redis, beside the queue that they open.

A key is ``mp_ID_SECRET``. The secret has 240 random bits, which nobody can guess, so a plain SHA-256 of
it is stored. The key itself is shown once, when it is created, and stored nowhere.
"""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from redis.asyncio import Redis

from millpond.errors import InvalidRequestError
from millpond.messages import TENANT_PATTERN, Priority
from millpond.queue.keys import Keys
from millpond.queue.scripts import Arg, Scripts, raising_unavailable

PREFIX = "mp"
ID_BYTES = 10
SECRET_BYTES = 30
MAX_NAME_CHARS = 64
_TOKEN = re.compile(
    rf"{PREFIX}_([a-z2-7]{{{ID_BYTES * 8 // 5}}})_[a-z2-7]{{{SECRET_BYTES * 8 // 5}}}"
)
_KEY_ID = re.compile(rf"[a-z2-7]{{{ID_BYTES * 8 // 5}}}")
# Compared with when no key is found, so that an unknown key takes as long as a wrong secret.
_NO_DIGEST = "0" * 64


class Scope(StrEnum):
    """No scope includes another: a key that scrapes metrics cannot read anyone's results."""

    SUBMIT = "submit"
    READ = "read"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """None: no limit. ``unfinished_jobs`` counts the tenant's queued and running jobs together,
    ``stored_bytes`` their requests and all its results, which are limited for keys without it too,
    ``open_streams`` the key's event streams and long polls on each API process, which has a limit for
    keys that have none.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    unfinished_jobs: int | None = None
    open_streams: int | None = None
    stored_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is stored about a key. It holds no secret. ``priorities`` None: its jobs may have any."""

    id: str
    name: str
    tenant: str
    scopes: frozenset[Scope]
    limits: KeyLimits
    created_ms: int
    revoked_ms: int | None
    priorities: frozenset[Priority] | None = None


class ApiKeys:
    """The keys of one queue. All methods raise QueueUnavailableError when Redis cannot serve."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._scripts = Scripts(redis, keys)

    async def create(
        self,
        tenant: str,
        scopes: Collection[Scope],
        *,
        name: str = "",
        limits: KeyLimits | None = None,
        priorities: Collection[Priority] | None = None,
    ) -> tuple[ApiKey, str]:
        """Create a key. Returns it with its text, which is shown this one time only.

        Raises InvalidRequestError naming the field.
        """
        limits = limits or KeyLimits()
        _check(tenant, scopes, name, limits)
        id, secret = _random(ID_BYTES), _random(SECRET_BYTES)
        token = f"{PREFIX}_{id}_{secret}"
        fields: dict[str, Arg | None] = {
            "name": name,
            "tenant": tenant,
            "scopes": " ".join(sorted(scopes)),
            "requests_per_minute": limits.requests_per_minute,
            "tokens_per_minute": limits.tokens_per_minute,
            "unfinished_jobs": limits.unfinished_jobs,
            "open_streams": limits.open_streams,
            "stored_bytes": limits.stored_bytes,
            "priorities": " ".join(sorted(priorities)) if priorities else None,
        }
        given = [arg for pair in fields.items() if pair[1] is not None for arg in pair]
        created = await self._scripts.run("key_create", id, _digest(token), *given)  # type: ignore[arg-type]
        assert created is not None, "80 random bits came twice"
        allowed = frozenset(priorities) if priorities else None
        key = ApiKey(id, name, tenant, frozenset(scopes), limits, int(created), None, allowed)
        return key, token

    async def revoke(self, id: str) -> bool:
        """Revoke the key for good; safe to repeat. False: there is no such key."""
        return bool(_KEY_ID.fullmatch(id)) and bool(await self._scripts.run("key_revoke", id))

    async def list(self) -> list[ApiKey]:
        """All keys, oldest first, revoked ones included."""
        with raising_unavailable():
            members: Any = await self._redis.smembers(self._keys["api_keys"])
            ids = [id.decode() for id in members]
            async with self._redis.pipeline(transaction=False) as pipe:
                for id in ids:
                    pipe.hgetall(self._keys.api_key(id))
                records = await pipe.execute()
        found = [_api_key(id, record) for id, record in zip(ids, records, strict=True) if record]
        return sorted(found, key=lambda key: (key.created_ms, key.id))

    async def revoked(self, ids: Sequence[str]) -> set[str]:
        """Those of the keys that are revoked or unknown, in one round trip."""
        if not ids:
            return set()
        with raising_unavailable():
            async with self._redis.pipeline(transaction=False) as pipe:
                for id in ids:
                    pipe.hmget(self._keys.api_key(id), ["digest", "revoked"])
                records: list[Any] = await pipe.execute()
        return {
            id
            for id, (digest, revoked) in zip(ids, records, strict=True)
            if digest is None or revoked is not None
        }

    async def look_up(self, id: str) -> "KnownKey | None":
        """The key that this text names; None if it is unknown or revoked."""
        with raising_unavailable():
            record: Any = await self._redis.hgetall(self._keys.api_key(id))
        if not record or b"revoked" in record:
            return None
        return KnownKey(_api_key(id, record), record[b"digest"].decode())


@dataclass(frozen=True, slots=True)
class KnownKey:
    key: ApiKey
    digest: str


def key_id(token: str) -> str | None:
    """The id inside a key's text; None if the text is not a key."""
    found = _TOKEN.fullmatch(token)
    return None if found is None else found.group(1)


def opens(token: str, known: KnownKey | None) -> bool:
    """Whether this text is that key, compared in constant time."""
    digest = _NO_DIGEST if known is None else known.digest
    return hmac.compare_digest(_digest(token), digest) and known is not None


def _random(size: int) -> str:
    return base64.b32encode(secrets.token_bytes(size)).decode().lower()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _check(tenant: str, scopes: Collection[Scope], name: str, limits: KeyLimits) -> None:
    if not TENANT_PATTERN.fullmatch(tenant):
        raise InvalidRequestError("tenant", f"must match {TENANT_PATTERN.pattern}", limit=32)
    if not scopes:
        raise InvalidRequestError("scope", f"at least one of {', '.join(Scope)}")
    if len(name) > MAX_NAME_CHARS or not name.isprintable():
        message = f"at most {MAX_NAME_CHARS} printable characters"
        raise InvalidRequestError("name", message, limit=MAX_NAME_CHARS)
    for field in KeyLimits.__slots__:
        value = getattr(limits, field)
        if value is not None and value < 1:
            raise InvalidRequestError(field, "must be at least 1", limit=1)


def _api_key(id: str, record: dict[bytes, bytes]) -> ApiKey:
    fields = {name.decode(): value.decode() for name, value in record.items()}

    def number(name: str) -> int | None:
        return int(fields[name]) if name in fields else None

    limits: dict[str, Any] = {name: number(name) for name in KeyLimits.__slots__}
    scopes: Sequence[str] = fields["scopes"].split()
    return ApiKey(
        id=id,
        name=fields["name"],
        tenant=fields["tenant"],
        scopes=frozenset(Scope(scope) for scope in scopes),
        limits=KeyLimits(**limits),
        created_ms=int(fields["created"]),
        revoked_ms=number("revoked"),
        priorities=(
            frozenset(Priority(name) for name in fields["priorities"].split())
            if "priorities" in fields
            else None
        ),
    )
