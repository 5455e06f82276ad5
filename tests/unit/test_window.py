"""When a window closes, for each of the policies."""

import pytest

from worker.window import WindowPolicy, decide

AT_ONCE = WindowPolicy.at_once(8)
FIXED = WindowPolicy.fixed(4)
SLIDING = WindowPolicy.sliding(8, 0.1)
HYBRID = WindowPolicy.hybrid(2, 8, 0.2)


@pytest.mark.parametrize(
    ("policy", "waiting", "waited_s", "take", "wait_s"),
    [
        (AT_ONCE, 1, 0.0, 1, None),
        (AT_ONCE, 50, 0.0, 8, None),
        (FIXED, 3, 99.0, 0, None),
        (FIXED, 4, 0.0, 4, None),
        (FIXED, 9, 0.0, 4, None),
        (SLIDING, 1, 0.04, 0, 0.06),
        (SLIDING, 5, 0.1, 5, None),
        (SLIDING, 8, 0.0, 8, None),
        (HYBRID, 1, 0.0, 0, 0.2),
        (HYBRID, 1, 0.2, 1, None),
        (HYBRID, 2, 0.0, 2, None),
        (HYBRID, 50, 0.0, 8, None),
    ],
)
def test_decisions(
    policy: WindowPolicy, waiting: int, waited_s: float, take: int, wait_s: float | None
) -> None:
    decision = decide(policy, waiting=waiting, waited_s=waited_s, free_slots=16)
    assert decision.take == take
    assert decision.wait_s == pytest.approx(wait_s)


@pytest.mark.parametrize("policy", [AT_ONCE, FIXED, SLIDING, HYBRID])
def test_nothing_to_take(policy: WindowPolicy) -> None:
    assert decide(policy, waiting=0, waited_s=9.0, free_slots=4).take == 0
    assert decide(policy, waiting=9, waited_s=9.0, free_slots=0).take == 0


def test_free_slots_bound_the_window_and_what_closes_it() -> None:
    assert decide(FIXED, waiting=5, waited_s=0.0, free_slots=3).take == 3
    assert decide(HYBRID, waiting=1, waited_s=0.0, free_slots=1).take == 1


def test_a_minimum_above_the_maximum_is_the_maximum() -> None:
    policy = WindowPolicy.hybrid(10, 4, 0.2)
    assert decide(policy, waiting=4, waited_s=0.0, free_slots=16).take == 4
