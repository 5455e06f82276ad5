"""When a delivery that failed is tried again. Pure."""

import random

# Eight tries over 17 hours, so that a receiver may be away for a night. Results are kept for 24 hours.
RETRY_AFTER_S = (5.0, 30.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0)
# So that what failed together does not come back together.
SPREAD = 0.2


def retry_delay_s(tries: int, chance: random.Random) -> float | None:
    """The delay after so many tries; None: that was the last one."""
    if tries > len(RETRY_AFTER_S):
        return None
    return RETRY_AFTER_S[tries - 1] * (1 + SPREAD * chance.random())
