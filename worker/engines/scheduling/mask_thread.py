"""Computes the masks of constrained rows while the model runs."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from worker.engines.scheduling.matcher import Matcher
from worker.engines.scheduling.row import Row


class MaskThread:
    """One thread beside the engine's, which is started by the first constrained row."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="masks")

    @contextlib.contextmanager
    def beside(self, rows: Iterable[Row]) -> Iterator[None]:
        """The block runs the model; when it ends, the masks of these rows' next tokens are there."""
        matchers = [row.matcher for row in rows if row.matcher is not None]
        if not matchers:
            yield
            return
        computed = self._pool.submit(_compute, matchers)
        try:
            yield
        finally:
            computed.result()

    def close(self) -> None:
        self._pool.shutdown()


def _compute(matchers: Sequence[Matcher]) -> None:
    for matcher in matchers:
        matcher.compute()
