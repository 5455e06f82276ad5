"""When a request is tried again. Pure: the clock and the random number are arguments."""

from email.utils import parsedate_to_datetime

FIRST_DELAY_S = 0.25
MAX_DELAY_S = 10.0
# An upstream that asks for more is asked again after this: it may have meant another unit.
MAX_RETRY_AFTER_S = 600.0


def backoff_s(refusals: int, dice: float) -> float:
    """The delay after that many refusals in a row, from 1: doubling, up to half of it by chance.

    ``dice`` is from 0 to 1; it keeps many rows from coming back in one moment.
    """
    whole = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(refusals - 1, 16))
    return whole * (0.5 + 0.5 * dice)


def retry_after_s(header: str | None, now_s: float) -> float | None:
    """Seconds to wait by a Retry-After header, in seconds or as a date; None if it says nothing.

    ``now_s`` is the time since the epoch.
    """
    if header is None:
        return None
    try:
        wait_s = float(header)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(header).timestamp() - now_s
        except ValueError:
            return None
    if wait_s != wait_s:
        return None
    return min(max(0.0, wait_s), MAX_RETRY_AFTER_S)
