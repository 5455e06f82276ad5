"""Text that ships with the engine: models are checked and calibrated on it, the same everywhere."""

from itertools import cycle, islice
from pathlib import Path

from millpond.models.tokenization import Tokenizer


def probe_tokens(tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    """Prose, code, mathematics, tables and several languages, as the model's tokens."""
    text = Path(__file__).with_name("probe.txt").read_text(encoding="utf-8")
    return [token_id for token_id in tokenizer.encode(text) if token_id < vocab_size]


def repeated(token_ids: list[int], count: int) -> list[int]:
    """These tokens, repeated to that length."""
    return list(islice(cycle(token_ids), count))
