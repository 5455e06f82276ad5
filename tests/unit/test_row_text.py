"""RowText: deltas add up, characters stay whole, stop strings never show."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.models.tokenization import ByteTokenizer, TextStream
from worker.engines.scheduling.row_text import RowText


def feed(
    text: str | bytes, stop: tuple[str, ...] = (), *, min_tokens: int = 0
) -> tuple[list[str], RowText, int]:
    """Push the bytes until the row stops; the deltas with the rest last, and the tokens used."""
    row = RowText(ByteTokenizer(), stop, min_tokens=min_tokens)
    deltas = []
    used = 0
    for token_id in text.encode() if isinstance(text, str) else text:
        deltas.append(row.push(token_id))
        used += 1
        if row.stopped:
            break
    deltas.append(row.finish())
    return deltas, row, used


def test_without_stop_strings_each_character_comes_as_its_last_byte_does() -> None:
    deltas, row, _ = feed("aé€😀")
    assert deltas == ["a", "", "é", "", "", "€", "", "", "", "😀", ""]
    assert row.text == "aé€😀"
    assert not row.stopped


def test_text_is_cut_before_the_stop_string() -> None:
    deltas, row, used = feed("one two END three", ("END",))
    assert row.stopped
    assert row.text == "one two " == "".join(deltas)
    assert used == len("one two END")


def test_a_suffix_that_may_begin_a_stop_string_is_held_back() -> None:
    row = RowText(ByteTokenizer(), ("\n\nQ",))
    assert [row.push(b) for b in b"A\n\nB"] == ["A", "", "", "\n\nB"]
    assert [row.push(b) for b in b"\n\n"] == ["", ""]
    assert row.finish() == "\n\n"
    assert row.text == "A\n\nB\n\n"


def test_a_stop_string_that_begins_again_inside_itself_is_found() -> None:
    _, row, _ = feed("aabaabaac", ("aabaac",))
    assert row.stopped
    assert row.text == "aab"


def test_of_several_stop_strings_the_earliest_to_end_wins() -> None:
    _, row, used = feed("xabcdef", ("abcdef", "cd"))
    assert row.text == "xab"
    assert used == 5


def test_a_stop_string_across_a_character_of_several_bytes() -> None:
    _, row, _ = feed("ende: €5", ("€",))
    assert row.text == "ende: "


def test_incomplete_bytes_at_the_end_decode_as_the_tokenizer_decodes_them() -> None:
    deltas, row, _ = feed(b"ok" + "€".encode()[:2])
    assert deltas[-1] == "\ufffd"
    assert row.text == ByteTokenizer().decode(list(b"ok" + "€".encode()[:2]))


def test_a_stop_string_completed_by_incomplete_bytes_is_honoured() -> None:
    _, row, _ = feed(b"ok\xe2", ("k\ufffd",))
    assert row.stopped
    assert row.text == "o"


@pytest.mark.parametrize(
    ("min_tokens", "expected"), [(0, "a"), (2, "a"), (3, "a.b"), (4, "a.b"), (5, "a.b.c")]
)
def test_stop_strings_before_min_tokens_do_not_count(min_tokens: int, expected: str) -> None:
    _, row, _ = feed("a.b.c", (".",), min_tokens=min_tokens)
    assert row.text == expected


def test_a_stop_string_that_only_begins_before_min_tokens_counts() -> None:
    _, row, _ = feed("aSTOPb", ("STOP",), min_tokens=4)
    assert row.text == "a"


class Breaking(ByteTokenizer):
    """Its streams fail after so many tokens; counts the tokens that are decoded."""

    def __init__(self, after: int) -> None:
        self._after = after
        self.num_decoded = 0

    def stream(self) -> TextStream:
        return _BreakingStream(super().stream(), self._after)

    def decode(self, token_ids: Sequence[int]) -> str:
        self.num_decoded += len(token_ids)
        return super().decode(token_ids)


class _BreakingStream:
    def __init__(self, stream: TextStream, after: int) -> None:
        self._stream = stream
        self._left = after

    def push(self, token_id: int) -> str:
        self._left -= 1
        if self._left < 0:
            raise Exception("Invalid prefix encountered")
        return self._stream.push(token_id)


@pytest.mark.parametrize("after", range(6))
def test_a_stream_that_fails_loses_and_repeats_no_text(after: int) -> None:
    row = RowText(Breaking(after))
    assert [row.push(b) for b in "né!€".encode()] == ["n", "", "é", "!", "", "", "€"]
    assert row.finish() == ""


def test_after_a_stream_failed_each_token_takes_bounded_work() -> None:
    tokenizer = Breaking(after=10)
    row = RowText(tokenizer)
    text = "Wörter " * 300
    deltas = [row.push(b) for b in text.encode()]
    assert "".join(deltas) == text
    assert tokenizer.num_decoded < 20 * len(deltas)


def test_after_a_stream_failed_bytes_that_are_no_text_wait_for_nothing() -> None:
    tokenizer = Breaking(after=0)
    row = RowText(tokenizer)
    deltas = [row.push(b) for b in b"\x80" * 500 + b"ok"]
    assert "".join(deltas) == "\ufffd" * 500 + "ok"
    assert max(len(delta) for delta in deltas) < 32
    assert tokenizer.num_decoded < 40 * len(deltas)


def test_a_tokenizer_that_rewrites_its_text_is_taken_by_parts() -> None:
    class Rewriting(Breaking):
        def decode(self, token_ids: Sequence[int]) -> str:
            text = super().decode(token_ids)
            return text.upper() if len(token_ids) % 2 else text

    tokenizer = Rewriting(after=0)
    row = RowText(tokenizer)
    deltas = [row.push(b) for b in b"a" * 200]
    deltas.append(row.finish())
    assert "".join(deltas).lower() == "a" * 200
    assert tokenizer.num_decoded < 60 * len(deltas)


ALPHABET = st.sampled_from("ab.é€")


@given(
    text=st.text(ALPHABET, max_size=40),
    stop=st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3),
    min_tokens=st.integers(0, 20),
)
def test_deltas_add_up_to_the_text_before_the_first_stop(
    text: str, stop: list[str], min_tokens: int
) -> None:
    deltas, row, used = feed(text, tuple(stop), min_tokens=min_tokens)
    assert "".join(deltas) == row.text

    encoded = text.encode()
    expected, expected_used = text, len(encoded)
    for end in range(max(min_tokens, 1), len(encoded) + 1):
        seen = encoded[:end].decode(errors="ignore")
        before = encoded[: max(min_tokens - 1, 0)].decode(errors="ignore")
        hits = [at for s in stop if (at := seen.find(s, max(0, len(before) - len(s) + 1))) >= 0]
        if hits:
            expected, expected_used = seen[: min(hits)], end
            break
    assert (row.text, used) == (expected, expected_used)
