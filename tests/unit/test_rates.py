"""What a worker tells of its speed."""

from worker.rates import WINDOW_S, Rates


def test_recent_rates_forget_what_is_old() -> None:
    rates = Rates(started_s=0.0)
    rates.job_ended(1.0, output_tokens=100)
    assert rates.snapshot(10.0).jobs_per_s == 0.1
    assert rates.snapshot(10.0).tokens_per_s == 10.0
    later = rates.snapshot(1.0 + WINDOW_S + 0.1)
    assert later.jobs_per_s == 0
    assert later.jobs_total == 1


def test_the_share_of_the_slots() -> None:
    rates = Rates(started_s=0.0)
    assert rates.snapshot(1.0).slot_share == 0
    rates.stepped(rows=3, slots=4)
    assert rates.snapshot(1.0).slot_share == 0.75
