"""Decode steps in which rows read drafted tokens ahead, and what such a step costs."""

import time
from collections.abc import Iterator, Mapping, Sequence

from millpond.models.tokenization import ByteTokenizer
from worker.engines.base import GenerationRequest, Sampling
from worker.engines.model.backend import Cache, Verifier, prefill
from worker.engines.sampling.sampling import Output
from worker.engines.scheduling.row import Row
from worker.engines.speculation.step_cost import StepCost

_MEASURED_TOKENS = (1, 6, 12, 24, 48, 96)
# Once twice the tokens cost nearly twice the time, more will, too.
_SATURATED = 1.8
# The fastest of so many counts; of slow models, which vary less, of fewer.
_ROUNDS, _SLOW_ROUNDS, _SLOW_S = 3, 2, 0.2
_PROMPT_TOKENS = 8


class DraftedStep:
    """The output of a step with drafts. Each row takes the tokens that it would have drawn anyway, one
    after another, as long as the draft foresaw them.

    ``spoiled`` rows take none. What is not finite in a draft spreads to tokens before it in the same pass
    (a masked NaN is still a NaN), so they are to be read again without one. ``rows`` are the others.
    """

    def __init__(
        self, rows: Sequence[Row], drafts: Mapping[str, Sequence[int]], output: Output
    ) -> None:
        assert output.best is not None
        self._drafts = drafts
        self._output = output
        self._first: dict[str, int] = {}
        self.rows: list[Row] = []
        self.spoiled: list[Row] = []
        place = 0
        for row in rows:
            self._first[row.id] = place
            places = 1 + len(drafts.get(row.id, ()))
            spoiled = places > 1 and None in output.best[place : place + places]
            (self.spoiled if spoiled else self.rows).append(row)
            place += places
        self._drafted = [row for row in self.rows if row.id in drafts]
        self._num_tokens = {row.id: len(row.token_ids) for row in self._drafted}

    @property
    def output(self) -> Output:
        """What comes after each row's newest token."""
        return self._output.of([self._first[row.id] for row in self.rows])

    def further(self) -> Iterator[tuple[list[Row], Output]]:
        """Rows that took what was drafted for them, and what comes next there. Each takes its token before
        the next are asked for."""
        rows, taken = self._drafted, 0
        while True:
            rows = [row for row in rows if self._goes_on(row, taken)]
            if not rows:
                return
            taken += 1
            yield rows, self._output.of([self._first[row.id] + taken for row in rows])

    def accepted(self) -> Iterator[tuple[Row, int, int]]:
        """At the end: each row with a draft, how long that was, and how many tokens of it were right."""
        for row in self._drafted:
            draft = self._drafts[row.id]
            new = row.token_ids[self._num_tokens[row.id] :]
            right = 0
            while right < min(len(draft), len(new)) and draft[right] == new[right]:
                right += 1
            yield row, len(draft), right

    def _goes_on(self, row: Row, taken: int) -> bool:
        draft = self._drafts[row.id]
        return (
            row.finish_reason is None and taken < len(draft) and row.token_ids[-1] == draft[taken]
        )


def measure_steps(verifier: Verifier, cache: Cache, *, most_tokens: int) -> StepCost | None:
    """Time steps of several sizes, with one row of at most ``most_tokens``. None: it is too short."""
    sizes = [size for size in _MEASURED_TOKENS if _PROMPT_TOKENS + size <= most_tokens]
    if len(sizes) < 2:
        return None
    sampling = Sampling(max_tokens=sizes[-1], seed=0, ignore_eos=True)
    request = GenerationRequest("measured", [0] * _PROMPT_TOKENS, sampling)
    row = Row(request, ByteTokenizer())
    cache.allocate([row])
    try:
        prefill(verifier, [row])
        row.append(0)
        measured: dict[int, float] = {}
        for size in sizes:
            measured[size] = _fastest(verifier, row, size)
            if size > 1 and measured[size] > _SATURATED * measured.get(size // 2, float("inf")):
                break
    finally:
        cache.free(row)
    return StepCost(measured)


def _fastest(verifier: Verifier, row: Row, size: int) -> float:
    fastest, rounds = float("inf"), _ROUNDS
    while rounds > 0:
        began_s = time.perf_counter()
        verifier.verify([row], {row.id: [0] * (size - 1)})
        fastest = min(fastest, time.perf_counter() - began_s)
        rounds -= 1
        if fastest > _SLOW_S:
            rounds = min(rounds, _SLOW_ROUNDS - 1)
    return fastest
