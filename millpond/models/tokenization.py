"""Text to token ids and back, without torch: the same code counts at submit and encodes in the worker.

`FolderTokenizer` reads a model folder's ``tokenizer.json`` through the `tokenizers` library and
renders its chat template (`millpond.models.chat_template`). `ByteTokenizer` serves the simulated engine.
"""

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer as RustTokenizer
from tokenizers.decoders import DecodeStream

from millpond.errors import ModelLoadError
from millpond.messages import Message
from millpond.models.chat_template import ChatTemplate, ChatTemplateError
from millpond.models.files import read_chat_template, read_json, read_special_tokens


class TextStream(Protocol):
    """Incremental decoder of one row: token ids to text, whole characters only."""

    def push(self, token_id: int) -> str:
        """Return the text that this token completes; often empty."""


class Tokenizer(Protocol):
    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_ids(self) -> frozenset[int]: ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a text for the model to continue."""

    def encode_part(self, text: str) -> list[int]:
        """Token ids of a text in the middle of others."""

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, up to where the assistant's answer begins.

        Raises ChatTemplateError if the model has no chat template, or the template refuses.
        """

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the ids, without special tokens."""

    def token_text(self, token_id: int) -> str:
        """Text of one token by itself, special tokens included; part of a character becomes U+FFFD."""

    def stream(self) -> TextStream: ...

    def definition(self) -> str | None:
        """The tokenizer as the text of a tokenizer.json; None if its tokens are bytes."""


class ByteTokenizer:
    """One token for each UTF-8 byte, and an end token; needs no model."""

    EOS = 256
    vocab_size = 257
    eos_token_ids = frozenset({EOS})

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_part(self, text: str) -> list[int]:
        return self.encode(text)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        turns = "".join(f"{m.role}: {m.content}\n" for m in messages)
        return self.encode(turns + "assistant: ")

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(t for t in token_ids if t < self.EOS).decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        return "<end>" if token_id == self.EOS else self.decode([token_id])

    def stream(self) -> TextStream:
        return _ByteStream()

    def definition(self) -> str | None:
        return None


class _ByteStream:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(bytes([token_id]) if token_id < ByteTokenizer.EOS else b"")


class FolderTokenizer:
    """The tokenizer of a model folder as transformers saves it.

    Raises ModelLoadError when the folder has no readable ``tokenizer.json``.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        try:
            self._tokenizer = RustTokenizer.from_file(str(path))
        except Exception as error:  # the Rust library raises bare Exception
            raise ModelLoadError(f"{path}: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._special_tokens = read_special_tokens(folder)
        self._template = self._find_template(folder)
        self.vocab_size = int(
            read_json(folder / "config.json").get("vocab_size") or self._tokenizer.get_vocab_size()
        )
        self.eos_token_ids = frozenset(self._find_eos(folder))
        self._texts: dict[int, str] = {}  # of single tokens, filled on demand

    def encode(self, text: str) -> list[int]:
        return self._encode(text, special_tokens=True)

    def encode_part(self, text: str) -> list[int]:
        return self._encode(text, special_tokens=False)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        if self._template is None:
            raise ChatTemplateError("this model has no chat template")
        text = self._template.render(messages)
        return self._encode(text, special_tokens=False)

    def _encode(self, text: str, *, special_tokens: bool) -> list[int]:
        # Only the batch call releases the GIL, and it is faster, too.
        [encoding] = self._tokenizer.encode_batch_fast([text], add_special_tokens=special_tokens)
        return list(encoding.ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def token_text(self, token_id: int) -> str:
        text = self._texts.get(token_id)
        if text is None:
            text = str(self._tokenizer.decode([token_id], skip_special_tokens=False))
            self._texts[token_id] = text
        return text

    def stream(self) -> TextStream:
        return _FolderStream(self._tokenizer)

    def definition(self) -> str | None:
        return str(self._tokenizer.to_str())

    def _find_template(self, folder: Path) -> ChatTemplate | None:
        source = read_chat_template(folder)
        try:
            return None if source is None else ChatTemplate(source, self._special_tokens)
        except ModelLoadError as error:
            raise ModelLoadError(f"{folder}: {error}") from error

    def _find_eos(self, folder: Path) -> set[int]:
        """The end tokens: those of generation_config, else of config, and the tokenizer's own."""
        found: set[int] = set()
        for name in ("generation_config.json", "config.json"):
            ids = read_json(folder / name).get("eos_token_id")
            if ids is not None:
                found.update(ids if isinstance(ids, list) else [ids])
                break
        own = self._tokenizer.token_to_id(self._special_tokens.get("eos_token", ""))
        return found if own is None else found | {own}


class _FolderStream:
    def __init__(self, tokenizer: RustTokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token_id: int) -> str:
        return self._stream.step(self._tokenizer, token_id) or ""
