"""The vote of one job's texts."""

from dataclasses import dataclass

from worker.voting.answers import FindAnswer


@dataclass(frozen=True, slots=True)
class Standing:
    """An answer and the texts that give it, in order."""

    answer: str
    texts: list[int]

    def loses_to(self, votes: int, first_text: int) -> bool:
        """More votes win; of equal ones those whose first text comes first."""
        return (-votes, first_text) < (-len(self.texts), self.texts[0])


class Vote:
    """Takes each text as it ends, in any order."""

    def __init__(self, find_answer: FindAnswer, num_texts: int) -> None:
        self._find_answer = find_answer
        self._running = set(range(num_texts))
        self._texts_of: dict[str, list[int]] = {}

    def ended(self, index: int, text: str | None) -> None:
        """None: it failed or was cut, and has no vote."""
        self._running.discard(index)
        answer = None if text is None else self._find_answer(text)
        if answer is not None:
            self._texts_of.setdefault(answer, []).append(index)

    @property
    def standings(self) -> list[Standing]:
        """The winner first."""
        found = [Standing(answer, sorted(texts)) for answer, texts in self._texts_of.items()]
        return sorted(found, key=lambda one: (-len(one.texts), one.texts[0]))

    @property
    def winner(self) -> Standing | None:
        """Of the votes so far."""
        return next(iter(self.standings), None)

    @property
    def decided(self) -> bool:
        """Whether the winner stays the same, however the texts vote that have not ended.

        At worst for it they all give the same other answer, one of the others or a new one.
        """
        standings = self.standings
        if not standings:
            return False
        winner, *others = standings
        rivals = [other.texts for other in others]
        if self._running:
            rivals.append([])
        return not any(
            winner.loses_to(len(texts) + len(self._running), min((*texts, *self._running)))
            for texts in rivals
        )
