"""What a worker tells of its speed."""

from worker.rates import MAX_SAMPLES, WINDOW_S, Rates


def test_recent_rates_forget_what_is_old() -> None:
    rates = Rates(started_s=0.0)
    rates.job_ended(1.0, output_tokens=100, wait_s=0.1, latency_s=0.5)
    assert rates.snapshot(10.0).jobs_per_s == 0.1
    assert rates.snapshot(10.0).tokens_per_s == 10.0
    later = rates.snapshot(1.0 + WINDOW_S + 0.1)
    assert later.jobs_per_s == 0
    assert later.latency_p50_ms is None
    assert later.jobs_total == 1


def test_the_share_of_the_slots() -> None:
    rates = Rates(started_s=0.0)
    assert rates.snapshot(1.0).slot_share == 0
    rates.stepped(rows=3, slots=4)
    assert rates.snapshot(1.0).slot_share == 0.75


def test_percentiles_are_of_the_last_jobs() -> None:
    rates = Rates(started_s=0.0)
    assert rates.snapshot(1.0).wait_p90_ms is None
    for i in range(MAX_SAMPLES + 101):
        rates.job_ended(1.0, output_tokens=1, wait_s=i / 1000, latency_s=i / 100)
    found = rates.snapshot(2.0)
    # Of the numbers 101 to 612.
    assert (found.wait_p50_ms, found.wait_p90_ms) == (356.0, 560.0)
    assert (found.latency_p50_ms, found.latency_p90_ms) == (3560.0, 5600.0)
