"""Which servers are refused, which are only warned of."""

import pytest

from millpond.queue.server_check import ServerFacts, UnsuitableServerError

GOOD = {"redis_version": "7.2.4", "maxmemory_policy": "noeviction", "aof_enabled": 1}


def test_a_good_server_is_taken_without_a_word() -> None:
    facts = ServerFacts.from_info(GOOD)
    facts.refuse_unsuitable(allow_eviction=False)
    assert facts.warnings() == []


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "volatile-lru"])
def test_eviction_is_refused_unless_a_setting_says_so(policy: str) -> None:
    facts = ServerFacts.from_info({**GOOD, "maxmemory_policy": policy})
    with pytest.raises(
        UnsuitableServerError, match=f"maxmemory-policy is {policy}.*allow_eviction"
    ):
        facts.refuse_unsuitable(allow_eviction=False)
    facts.refuse_unsuitable(allow_eviction=True)
    [warning] = facts.warnings()
    assert policy in warning


@pytest.mark.parametrize("version", ["6.2.14", "5.0"])
def test_an_old_server_is_refused_always(version: str) -> None:
    facts = ServerFacts.from_info({**GOOD, "redis_version": version})
    with pytest.raises(UnsuitableServerError, match=r"needs Redis 7\.0"):
        facts.refuse_unsuitable(allow_eviction=True)


def test_a_server_that_keeps_nothing_is_warned_of() -> None:
    facts = ServerFacts.from_info({**GOOD, "aof_enabled": 0})
    facts.refuse_unsuitable(allow_eviction=False)
    [warning] = facts.warnings()
    assert "appendonly is off" in warning


def test_what_a_server_does_not_tell_is_no_fault() -> None:
    facts = ServerFacts.from_info({})
    facts.refuse_unsuitable(allow_eviction=False)
    assert facts.warnings() == []
