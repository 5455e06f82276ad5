"""A row's reasoning and its answer, told apart as tokens come, and a row that is made to stop thinking."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.messages import FinishReason
from millpond.messages.constraints import Constraint
from millpond.models.grammars import GrammarCompiler
from millpond.models.presets import THINK
from millpond.models.tokenization import ByteTokenizer
from worker.engines.base import GenerationRequest, Sampling
from worker.engines.scheduling.row import Row
from worker.engines.scheduling.split_text import SplitText

TOKENIZER = ByteTokenizer()


def split(text: str, *, by_token: bool = True, **options: object) -> SplitText:
    """Also checks that what was given out piece by piece is the whole."""
    made = SplitText(TOKENIZER, THINK, **options)  # type: ignore[arg-type]
    taken = []
    for piece in text.encode() if by_token else text:
        if made.stopped:
            break
        made.push(piece) if isinstance(piece, int) else made.push_text(piece)
        taken.append(made.take())
    if not made.stopped:
        made.finish()
    taken.append(made.take())
    assert "".join(thought for thought, _ in taken) == made.reasoning
    assert "".join(said for _, said in taken) == made.text
    return made


@pytest.mark.parametrize("by_token", [True, False])
@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>\nit is 4\n</think>\n\nFour.", "it is 4\n", "Four."),
        (" \n<think>a</think>b", "a", "b"),
        ("<think></think>b", "", "b"),
        ("<think>a < b </thin </think> b", "a < b </thin ", "b"),
        ("<think>no end</thi", "no end</thi", ""),
        ("Four.", "", "Four."),
        (" <thinking> is hard", "", " <thinking> is hard"),
        ("<thin", "", "<thin"),
        ("  ", "", "  "),
        ("A <think>b</think>", "", "A <think>b</think>"),
        ("</think>b", "", "</think>b"),
        ("<think>ä</think>ö", "ä", "ö"),
    ],
)
def test_the_parts_of_a_text(text: str, reasoning: str, answer: str, by_token: bool) -> None:
    made = split(text, by_token=by_token)
    assert (made.reasoning, made.text) == (reasoning, answer)


def test_a_prompt_may_have_opened_the_reasoning() -> None:
    made = split("it is 4</think>Four.", opened=True)
    assert (made.reasoning, made.text) == ("it is 4", "Four.")
    assert made.reasoning_tokens == len("it is 4</think>")


def test_what_shares_a_token_with_the_end_marker_is_no_part_of_a_constrained_answer() -> None:
    """Whose grammar begins with the next token."""
    for constrained, answer in ((False, "{ 4"), (True, "4")):
        made = SplitText(TOKENIZER, THINK, opened=True, constrained=constrained)
        made.push_text("hm</think>\n{ ")
        made.push_text("4")
        made.finish()
        assert (made.reasoning, made.text) == ("hm", answer)


def test_stop_strings_are_the_answers() -> None:
    made = split("<think>one stop</think>two stop three", stop=["stop"])
    assert (made.reasoning, made.text, made.stopped) == ("one stop", "two ", True)
    plain = split("no stop", stop=["stop"])
    assert (plain.text, plain.stopped, plain.reasoning_tokens) == ("no ", True, 0)


@given(st.text("<>/think a\n", max_size=40), st.booleans())
def test_nothing_is_lost_but_markers_and_white_space(text: str, by_token: bool) -> None:
    made = split(text, by_token=by_token)
    both = made.reasoning + made.text
    whole = text
    if made.reasoning_tokens or made.reasoning or both != text:
        whole = whole.replace("<think>", "", 1).replace("</think>", "", 1)
    assert re.sub(r"\s", "", both) == re.sub(r"\s", "", whole)


def row(prompt: str = "x", *, regex: str | None = None, **sampling: object) -> Row:
    values = {"max_tokens": 60, "seed": 0, **sampling}
    compiler = GrammarCompiler(TOKENIZER)
    grammar = None if regex is None else compiler.compile(Constraint("regex", "field", regex))
    request = GenerationRequest(
        "r",
        TOKENIZER.encode(prompt),
        Sampling(**values),  # type: ignore[arg-type]
        grammar=grammar,
        thinking=THINK,
    )
    return Row(request, TOKENIZER)


def write(row: Row, text: str) -> None:
    """What a model would write, except where it is made to write something else."""
    for token_id in text.encode():
        while row.forced_token_id is not None:
            row.append(row.forced_token_id)
        if row.finish_reason is None:
            row.append(token_id)


@pytest.mark.parametrize(("prompt", "start"), [("x", "<think>"), ("x<think>\n", "")])
def test_a_row_that_thinks_for_too_long_is_made_to_answer(prompt: str, start: str) -> None:
    made = row(prompt, max_reasoning_tokens=10)
    write(made, f"{start}0123456789"[:10] + "Four.")
    made.append(ByteTokenizer.EOS)
    end = made.finished()
    assert end.reason is FinishReason.STOP
    assert end.text == "Four."
    assert end.reasoning == "0123456789"[: 10 - len(start)] + "\n"
    assert end.reasoning_tokens == 10 + len("\n</think>")
    assert TOKENIZER.decode(end.token_ids).endswith("\n</think>\n\nFour.")


def test_a_row_that_ends_its_reasoning_in_time_is_left_alone() -> None:
    made = row(max_reasoning_tokens=20)
    write(made, "<think>a</think>b" + "c" * 20)
    assert made.forced_token_id is None
    assert made.text == "b" + "c" * 20


def test_a_constraint_is_the_answers_and_the_reasoning_is_opened() -> None:
    """Where the model would not have begun with it; and it may not end inside."""
    made = row(regex="[0-9]+x")
    assert made.matcher is None
    assert made.suppressed_token_ids == {ByteTokenizer.EOS}
    write(made, "free text</think>")
    assert made.suppressed_token_ids == ()
    assert made.matcher is not None
    made.matcher.compute()
    assert made.matcher.allows(ord("7"))
    assert not made.matcher.allows(ord("a"))
    write(made, "7x")
    end = made.finished()
    assert (end.reason, end.reasoning, end.text) == (FinishReason.STOP, "free text", "7x")
