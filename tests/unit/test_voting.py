"""Which answer of several texts wins, and that ending the vote early never changes it."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from millpond.messages import JobRequest, VoteKind
from millpond.messages.votes import MAX_VOTE_PATTERN_CHARS
from worker.voting.answers import SEARCH_S, answer_finder, boxed_answer
from worker.voting.vote import Vote

ANSWERS = ["1", "2", None]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}", "42"),
        (r"\boxed{1}, no, \boxed{2}.", "2"),
        (r"\boxed{ \dfrac{1}{2} }", r"\frac{1}{2}"),
        (r"\boxed {x = 3}", "x=3"),
        (r"\boxed{1,234}", "1234"),
        (r"\boxed{1{,}234.5}", "1234.5"),
        (r"\boxed{(1,234)}", "(1,234)"),
        (r"\boxed{$7.$}", "7"),
        (r"\boxed{\text{New  York}}", "New York"),
        (r"\boxed{\left( 1, 2 \right)}", "(1,2)"),
        (r"\boxed{\{1, 2\}}", r"\{1,2\}"),
        (r"\boxed{a \} b}", r"a\}b"),
        (r"\boxed{\boxed{3} apples}", "3"),
        (r"\boxed{5} and then \boxed{6", "5"),
        (r"} \boxed{8}", "8"),
        (r"{ \boxed{9}", "9"),
        (r"\boxed{}", None),
        (r"\boxed{ }", None),
        ("none", None),
    ],
)
def test_the_last_box_holds_the_answer(text: str, answer: str | None) -> None:
    assert boxed_answer(text) == answer


def test_many_open_boxes_take_linear_time() -> None:
    text = r"\boxed{" * 50_000
    began_s = time.thread_time()
    assert boxed_answer(text) is None
    assert boxed_answer(text + "7" + "}" * 50_000) == "7"
    assert time.thread_time() - began_s < 2


@pytest.mark.parametrize(
    ("pattern", "text", "answer"),
    [
        (r"answer is (\d+)", "The answer is 4. No: the answer is 42.", "42"),
        (r"(\d+)", "7 and 42", "42"),
        (r"(?i)ANSWER: *(\w*)", "Answer:", None),
        (r"a(b)?", "a", None),
        (r"(\d+)", "none", None),
    ],
)
def test_the_first_group_of_the_last_match_is_the_answer(
    pattern: str, text: str, answer: str | None
) -> None:
    assert answer_finder(VoteKind.REGEX, pattern)(text) == answer


def test_a_pattern_that_takes_long_has_no_answer() -> None:
    """RE2 backtracks nowhere, but a search to the end of the text from each of its places takes a minute."""
    find = answer_finder(VoteKind.REGEX, r"(a)(?:[ab]*a[ab]{900}c)?" + "(?:[ab]*a[ab]{900}d)?" * 9)
    began_s = time.thread_time()
    assert find("ab" * 4_096) is None
    assert time.thread_time() - began_s < 20 * SEARCH_S


def test_the_exact_text_is_stripped() -> None:
    find = answer_finder(VoteKind.EXACT, None)
    assert (find(" yes\n"), find(" ")) == ("yes", None)


def vote_of(answers: list[str | None], order: list[int]) -> Vote:
    vote = Vote(lambda text: text, len(answers))
    for index in order:
        vote.ended(index, answers[index])
    return vote


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(ANSWERS), min_size=2, max_size=5).flatmap(
        lambda answers: st.tuples(st.just(answers), st.permutations(range(len(answers))))
    )
)
def test_a_vote_is_decided_as_soon_as_nothing_can_change_it(
    given: tuple[list[str | None], list[int]],
) -> None:
    """Beside all ways in which the rest may vote, with an answer that nobody has given among them."""
    answers, order = given
    full = vote_of(answers, order).winner
    for done in range(len(order) + 1):
        vote = vote_of(answers, order[:done])
        rest = order[done:]
        possible = {
            None if (won := vote_of(completed, order).winner) is None else won.answer
            for completed in _completions(answers, rest)
        }
        assert vote.decided == (len(possible) == 1 and None not in possible)
        if vote.decided:
            assert full is not None
            assert vote.winner is not None
            assert vote.winner.answer == full.answer


def _completions(answers: list[str | None], rest: list[int]) -> list[list[str | None]]:
    found = [list(answers)]
    for index in rest:
        found = [
            [*some[:index], choice, *some[index + 1 :]]
            for some in found
            for choice in ("1", "2", "new", None)
        ]
    return found


def test_of_equally_many_votes_the_lowest_index_wins() -> None:
    vote = vote_of(["b", "a", "a", "b"], [2, 1, 3, 0])
    assert [(one.answer, one.texts) for one in vote.standings] == [("b", [0, 3]), ("a", [1, 2])]


def test_a_tie_that_the_leader_would_win_is_not_waited_for() -> None:
    assert vote_of(["a", "a", "b", "b"], [0, 1]).decided
    assert not vote_of(["a", "a", "b", "b"], [2, 3]).decided


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"vote": "boxed"}, "n", "at least 2"),
        ({"vote": "most", "n": 2}, "vote", "'boxed', 'regex' or 'exact'"),
        ({"vote": "regex", "n": 2}, "vote_pattern", "needs one"),
        ({"vote": "boxed", "n": 2, "vote_pattern": "(a)"}, "vote_pattern", "by regex"),
        ({"n": 2, "vote_pattern": "(a)"}, "vote_pattern", "by regex"),
        ({"vote": "regex", "n": 2, "vote_pattern": "(a"}, "vote_pattern", "missing )"),
        ({"vote": "regex", "n": 2, "vote_pattern": r"(a)\1"}, "vote_pattern", "invalid escape"),
        ({"vote": "regex", "n": 2, "vote_pattern": r"\d+"}, "vote_pattern", "needs a group"),
        ({"vote": "regex", "n": 2, "vote_pattern": "(a{1000}){1000}"}, "vote_pattern", "RE2"),
        ({"vote": "regex", "n": 2, "vote_pattern": r"(\pL{300})"}, "vote_pattern", "524288 bytes"),
        (
            {"vote": "regex", "n": 2, "vote_pattern": "(" + "a" * MAX_VOTE_PATTERN_CHARS + ")"},
            "vote_pattern",
            "at most 1000",
        ),
    ],
)
def test_a_vote_that_cannot_be_taken_is_refused_by_name(
    fields: dict[str, object], field: str, says: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        JobRequest.model_validate({"prompt": "p", **fields})
    [error] = caught.value.errors()
    named = ".".join(map(str, error["loc"])) or error["msg"].removeprefix("Value error, ")
    assert named.startswith(field)
    assert says in error["msg"]
