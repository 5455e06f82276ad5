"""How many tries a receiver gets at once, so that a dead one does not take the time of the others. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_TRIES_AT_ONCE = 8
REST_S = 1.0
REST_MAX_S = 60.0
# Beyond so many, those that have not failed of late are forgotten.
MAX_REMEMBERED = 1_000


@dataclass(slots=True)
class _Receiver:
    running: int = 0
    failures: int = 0
    rests_until_s: float = 0.0


class Receivers:
    """Receivers by host and port. After failures in a row one rests: 1 s, then twice as long each time."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._known: dict[str, _Receiver] = {}

    def wait_s(self, url: str) -> float:
        """0 if a try may be made now; else when to ask again."""
        receiver = self._known.get(_host(url))
        if receiver is None:
            return 0.0
        if receiver.running >= MAX_TRIES_AT_ONCE:
            return REST_S
        return max(0.0, receiver.rests_until_s - self._clock_s())

    def begin(self, url: str) -> None:
        self._known.setdefault(_host(url), _Receiver()).running += 1

    def end(self, url: str, *, answered: bool) -> None:
        """``answered``: it is alive, whatever it said."""
        host = _host(url)
        receiver = self._known[host]
        receiver.running -= 1
        if answered:
            receiver.failures, receiver.rests_until_s = 0, 0.0
            if not receiver.running:
                del self._known[host]
            return
        rest_s = min(REST_MAX_S, REST_S * 2**receiver.failures)
        receiver.failures = min(receiver.failures + 1, 16)
        receiver.rests_until_s = self._clock_s() + rest_s
        if len(self._known) > MAX_REMEMBERED:
            self._forget_old()

    def _forget_old(self) -> None:
        old_s = self._clock_s() - REST_MAX_S
        self._known = {
            host: receiver
            for host, receiver in self._known.items()
            if receiver.running or receiver.rests_until_s > old_s
        }


def _host(url: str) -> str:
    return urlsplit(url).netloc.lower()
