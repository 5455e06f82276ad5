"""API keys and their limits, over every back-end."""

import asyncio

import pytest
from redis.asyncio import Redis

from millpond.access.api_keys import ApiKeys, KeyLimits, Scope, key_id, opens
from millpond.access.rate_limits import REQUESTS, TOKENS, RateLimiter
from millpond.errors import InvalidRequestError, LimitExceededError, TenantFullError
from millpond.messages import JobRequest
from millpond.queue.job_queue import JobQueue
from millpond.queue.keys import Keys
from millpond.queue.submission import NewJob, Submission

KEYS = Keys("test")
BOTH = (Scope.SUBMIT, Scope.READ)


@pytest.fixture
def api_keys(redis: Redis) -> ApiKeys:
    return ApiKeys(redis, KEYS)


@pytest.fixture
def limiter(redis: Redis) -> RateLimiter:
    return RateLimiter(redis, KEYS)


async def test_a_key_opens_itself_and_nothing_else(api_keys: ApiKeys) -> None:
    limits = KeyLimits(requests_per_minute=60, unfinished_jobs=5)
    made, token = await api_keys.create("acme", BOTH, name="their batch job", limits=limits)
    _, other = await api_keys.create("acme", BOTH)

    known = await api_keys.look_up(made.id)
    assert known is not None
    assert known.key == made
    assert (made.tenant, made.scopes, made.limits) == ("acme", frozenset(BOTH), limits)
    assert key_id(token) == made.id
    assert opens(token, known)
    assert not opens(other, known)
    assert not opens(token[:-1] + ("a" if token[-1] != "a" else "b"), known)
    assert not opens(token, None)


async def test_nothing_that_opens_a_key_is_stored(api_keys: ApiKeys, redis: Redis) -> None:
    made, token = await api_keys.create("acme", BOTH)
    secret = token.rpartition("_")[2].encode()

    stored = repr([await redis.hgetall(key) async for key in redis.scan_iter("*api-key:*")])

    assert secret.decode() not in stored
    assert made.id.encode() in await redis.smembers(KEYS["api_keys"])
    assert secret.decode() not in repr(made)


async def test_a_revoked_key_is_as_good_as_unknown(api_keys: ApiKeys) -> None:
    made, _ = await api_keys.create("acme", BOTH)

    assert await api_keys.revoke(made.id)
    [first] = await api_keys.list()
    assert await api_keys.revoke(made.id)

    assert await api_keys.look_up(made.id) is None
    assert first.revoked_ms is not None
    assert await api_keys.list() == [first], "a repeat changed the time of the revocation"
    assert not await api_keys.revoke("a" * 16)
    assert not await api_keys.revoke("*")


async def test_the_list_has_the_oldest_first(api_keys: ApiKeys) -> None:
    assert await api_keys.list() == []
    made = [(await api_keys.create(f"t{i}", BOTH))[0] for i in range(5)]
    assert {key.id for key in await api_keys.list()} == {key.id for key in made}
    times = [key.created_ms for key in await api_keys.list()]
    assert times == sorted(times)


@pytest.mark.parametrize(
    ("field", "tenant", "scopes", "name", "limits"),
    [
        ("tenant", "a b", BOTH, "", KeyLimits()),
        ("tenant", "", BOTH, "", KeyLimits()),
        ("scope", "a", (), "", KeyLimits()),
        ("name", "a", BOTH, "a" * 65, KeyLimits()),
        ("name", "a", BOTH, "\x1b[2J", KeyLimits()),
        ("tokens_per_minute", "a", BOTH, "", KeyLimits(tokens_per_minute=0)),
    ],
)
async def test_a_bad_key_is_not_made(
    api_keys: ApiKeys,
    field: str,
    tenant: str,
    scopes: tuple[Scope, ...],
    name: str,
    limits: KeyLimits,
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await api_keys.create(tenant, scopes, name=name, limits=limits)
    assert caught.value.field == field
    assert await api_keys.list() == []


@pytest.mark.parametrize(
    "text", ["", "mp__", "mp_a_b", "sk-123", "mp_" + "a" * 16 + "_" + "A" * 48, "mp_é_ü"]
)
def test_what_is_no_key_has_no_id(text: str) -> None:
    assert key_id(text) is None


async def test_a_bucket_pays_until_it_is_empty(limiter: RateLimiter) -> None:
    limits = {REQUESTS: 3}
    left = [(await limiter.spend("k", limits, {REQUESTS: 1}))[0].left for _ in range(3)]

    with pytest.raises(LimitExceededError) as caught:
        await limiter.spend("k", limits, {REQUESTS: 1})

    assert left == [2, 1, 0]
    assert (caught.value.name, caught.value.limit) == (REQUESTS, 3)
    assert 1 <= caught.value.retry_after_s <= 20
    assert caught.value.budgets[0].left == 0
    [other] = await limiter.spend("another", limits, {REQUESTS: 1})
    assert other.left == 2


async def test_a_bucket_fills_with_the_servers_time(limiter: RateLimiter) -> None:
    limits = {REQUESTS: 6000}  # a hundred each second
    await limiter.spend("k", limits, {REQUESTS: 6000})
    with pytest.raises(LimitExceededError):
        await limiter.spend("k", limits, {REQUESTS: 50})
    await asyncio.sleep(0.6)
    await limiter.spend("k", limits, {REQUESTS: 50})


async def test_all_buckets_pay_or_none(limiter: RateLimiter) -> None:
    limits = {REQUESTS: 10, TOKENS: 100}
    await limiter.spend("k", limits, {REQUESTS: 1, TOKENS: 90})
    with pytest.raises(LimitExceededError) as caught:
        await limiter.spend("k", limits, {REQUESTS: 1, TOKENS: 90})
    assert caught.value.name == TOKENS
    requests, tokens = await limiter.spend("k", limits, {})
    assert (requests.left, tokens.left) in {(9, 10), (9, 11)}


async def test_more_than_a_bucketful_passes_once_and_leaves_a_debt(limiter: RateLimiter) -> None:
    limits = {TOKENS: 100}
    [budget] = await limiter.spend("k", limits, {TOKENS: 250})
    assert (budget.left, budget.reset_s) == (0, 150)
    with pytest.raises(LimitExceededError) as caught:
        await limiter.spend("k", limits, {TOKENS: 1})
    assert 89 <= caught.value.retry_after_s <= 91


async def test_what_is_given_back_is_there_again(limiter: RateLimiter) -> None:
    limits = {TOKENS: 100}
    await limiter.spend("k", limits, {TOKENS: 100})
    [budget] = await limiter.spend("k", limits, {TOKENS: -100})
    assert budget.left == 100
    [budget] = await limiter.spend("k", limits, {TOKENS: -100})
    assert budget.left == 100, "a bucket holds a minute's worth at most"


async def test_what_a_key_spent_is_forgotten_in_time(limiter: RateLimiter, redis: Redis) -> None:
    await limiter.spend("k", {REQUESTS: 60}, {REQUESTS: 1})
    assert 60_000 < await redis.pttl(KEYS["spent"] + "k") <= 61_000


async def test_a_tenant_at_its_limit_is_refused_and_no_other(queue: JobQueue) -> None:
    def job(tenant: str, limit: int | None) -> NewJob:
        return NewJob(JobRequest(prompt="a"), tenant=tenant, tenant_limit=limit)

    answers = await queue.submit_many([job("a", 2), job("b", 1), job("a", 2), job("a", 2)])
    kinds = [type(answer) for answer in answers]
    assert kinds == [Submission, Submission, Submission, TenantFullError]
    refused = answers[3]
    assert isinstance(refused, TenantFullError)
    assert (refused.depth, refused.limit) == (2, 2)
    assert "2 unfinished jobs" in str(refused)

    # Running jobs count, ended ones do not; a key without a limit is not held back.
    claim = await queue.claim("w", 1, budget_tokens=10**6, capacity_tokens=10**6)
    [answer] = await queue.submit_many([job("a", 2)])
    assert isinstance(answer, TenantFullError)
    await queue.cancel(claim.jobs[0].id)
    await queue.release([(claim.jobs[0].id, claim.jobs[0].fence)])
    answers = await queue.submit_many([job("a", 2), job("a", None)])
    assert [type(answer) for answer in answers] == [Submission, Submission]
