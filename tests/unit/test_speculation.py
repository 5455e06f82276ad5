"""What is drafted: n-grams, finished texts, chances, and what a step costs."""

import pytest

from millpond.models.tokenization import ByteTokenizer
from worker.engines.base import GenerationRequest, Sampling
from worker.engines.scheduling.row import Row
from worker.engines.speculation.acceptance import Acceptance
from worker.engines.speculation.finished_texts import FinishedTexts
from worker.engines.speculation.ngrams import Ngrams
from worker.engines.speculation.speculator import Speculator
from worker.engines.speculation.step_cost import MOST_DRAFTED, StepCost

# Twelve tokens for the price of one, and then each costs a twelfth.
TILES = StepCost({1: 1.0, 12: 1.0, 96: 8.0})


def row(prompt: list[int], max_tokens: int = 100, *, id: str = "r", salt: str = "") -> Row:
    sampling = Sampling(max_tokens=max_tokens, seed=0, ignore_eos=True)
    return Row(GenerationRequest(id, prompt, sampling, cache_salt=salt), ByteTokenizer())


def drafts(speculator: Speculator, *rows: Row, room: int = 100) -> dict[str, list[int]]:
    return speculator.drafts(rows, lambda _: room)


def test_the_longest_ngram_wins_and_of_equal_ones_the_last() -> None:
    ngrams = Ngrams()
    ngrams.add([*range(1, 10), 100, 0, 7, 8, 9, 101, 7, 8, 9, 102, 5])
    long, short = ngrams.find([*range(1, 10)]), ngrams.find([50, 7, 8, 9])
    assert long is not None
    assert (long.matched, long.draft(1)) == (9, [100])
    assert short is not None
    assert (short.matched, short.draft(2)) == (3, [102, 5])
    assert ngrams.find([7, 8]) is None


def test_a_text_that_repeats_itself_is_drafted_beyond_its_end() -> None:
    tokens = [9, 1, 2, 3, 1, 2, 3]
    ngrams = Ngrams()
    ngrams.add(tokens)
    match = ngrams.find(tokens)
    assert match is not None
    assert match.draft(7) == [1, 2, 3, 1, 2, 3, 1]


def test_finished_texts_are_kept_apart_and_bounded() -> None:
    texts = FinishedTexts(20)
    texts.add("a", [1, 2, 3, 4])
    texts.add("b", [1, 2, 3, 5])
    texts.add("a", [])
    mine = texts.find("a", [0, 1, 2, 3])
    assert mine is not None
    assert mine.draft(1) == [4]
    assert texts.find("c", [1, 2, 3]) is None

    texts.add("b", [6] * 13)
    assert texts.num_tokens == 17
    assert texts.find("a", [1, 2, 3]) is None
    texts.add("b", range(100))
    assert texts.num_tokens == 20
    assert texts.find("b", [1, 2, 3]) is None, "only the end of a text that is too long"
    assert texts.find("b", [90, 91, 92]) is not None


def test_a_forgotten_text_takes_no_ngram_of_a_later_one_along() -> None:
    texts = FinishedTexts(8)
    texts.add("a", [1, 2, 3, 4])
    texts.add("a", [1, 2, 3, 5])
    texts.add("a", [7])
    match = texts.find("a", [1, 2, 3])
    assert match is not None
    assert match.draft(1) == [5]


def test_chances_follow_what_was_accepted_and_fade() -> None:
    acceptance = Acceptance()
    before = acceptance.chance(4)
    for _ in range(20):
        acceptance.learn(4, drafted=6, accepted=0)
        acceptance.learn(30, drafted=6, accepted=6)
    assert acceptance.chance(4) < 0.15 < before
    assert acceptance.chance(30) > 0.95
    for _ in range(400):
        acceptance.pass_over(4)
    assert acceptance.chance(4) == pytest.approx(before, abs=0.01)


def test_drafts_fill_what_costs_nothing_and_go_to_the_likelier_rows() -> None:
    sure, unsure = TILES.lengths(2, [0.95, 0.3], [16, 16])
    assert sure > unsure
    assert sure + unsure >= 10, "what a step of twelve tokens has room for"
    assert TILES.lengths(2, [0.95, 0.3], [3, 0]) == [3, 0]
    assert StepCost.free_drafts().lengths(1, [1.0], [1000]) == [MOST_DRAFTED]


def test_nothing_is_drafted_where_each_token_costs_its_share() -> None:
    assert TILES.can_gain(4)
    assert not TILES.can_gain(64)
    assert TILES.lengths(64, [0.9] * 64, [16] * 64) == [0] * 64
    assert TILES.lengths(12, [0.2] * 12, [16] * 12) == [0] * 12


def test_a_disturbed_measurement_makes_no_draft_seem_free() -> None:
    disturbed = StepCost({1: 6.0, 12: 1.0, 96: 8.0})
    assert disturbed.seconds(1) == disturbed.seconds(6) == 1.0
    assert disturbed.lengths(1, [0.9], [16]) == TILES.lengths(1, [0.9], [16])


def test_a_row_is_drafted_no_more_than_it_has_room_for_or_can_take() -> None:
    speculator = Speculator(16)
    prompt = [*range(20), *range(3)]
    assert drafts(speculator, row(prompt)) == {"r": [*range(3, 19)]}
    assert drafts(speculator, row(prompt), room=4) == {"r": [3, 4, 5, 6]}
    assert drafts(speculator, row(prompt, max_tokens=3)) == {"r": [3, 4]}
    assert drafts(speculator, row(prompt, max_tokens=1)) == {}
    assert drafts(Speculator(0), row(prompt)) == {}


def test_a_row_is_drafted_from_what_others_of_its_salt_were_answered() -> None:
    speculator = Speculator(4)
    done = row([1, 2, 3], salt="a")
    for token_id in range(10, 30):
        done.append(token_id)
    speculator.ended(done)
    for salt, wanted in (("a", {"later": [14, 15, 16, 17]}), ("b", {})):
        later = row([1, 2, 3], id="later", salt=salt)
        for token_id in range(10, 14):
            later.append(token_id)
        assert drafts(speculator, later) == wanted
        speculator.ended(later)
