"""How many requests may be open at an upstream that does not tell its limit (AIMD). Pure: no clock,
no network."""


class AdaptiveLimit:
    """Additive increase, multiplicative decrease, between 1 and ``maximum``; begins at ``maximum``.

    Each request takes a ticket when it is opened. Many that are turned away together were opened
    under the same limit, so only the first of them halves it: a ticket from before the last cut
    counts no more.
    """

    def __init__(self, maximum: int) -> None:
        assert maximum >= 1
        self._maximum = maximum
        self._value = float(maximum)
        self._cuts = 0

    @property
    def value(self) -> int:
        return int(self._value)

    def ticket(self) -> int:
        return self._cuts

    def accepted(self, num_open: int) -> None:
        """A request was taken by the upstream: a whole limit's worth of these adds one.

        ``num_open`` counts this one. A limit that is not used up is not raised.
        """
        if num_open >= self.value:
            self._value = min(float(self._maximum), self._value + 1.0 / self._value)

    def overloaded(self, ticket: int, num_open: int) -> bool:
        """A request was turned away or timed out: halve what was open. Whether the limit was cut."""
        if ticket < self._cuts:
            return False
        self._cuts += 1
        self._value = max(1.0, min(self._value, float(num_open)) / 2)
        return True
