"""Text to token ids and back, without torch: the same code counts at submit and encodes in the worker.

`FolderTokenizer` reads a model folder's ``tokenizer.json`` through the `tokenizers` library and
renders its chat template with a sandboxed Jinja. `ByteTokenizer` serves the simulated engine.
"""

import codecs
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.decoders import DecodeStream

from millpond.errors import InvalidRequestError, ModelLoadError
from millpond.messages import Message


class TextStream(Protocol):
    """Turns one row's token ids into text as they come; whole characters only."""

    def push(self, token_id: int) -> str:
        """Return the text that became certain with this token, often empty."""


class Tokenizer(Protocol):
    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_ids(self) -> frozenset[int]: ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that the model is to continue."""

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, ending where the assistant is to speak."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the ids, special tokens left out."""

    def token_text(self, token_id: int) -> str:
        """One token by itself, special ones spelled out; half a character appears as U+FFFD."""

    def stream(self) -> TextStream: ...


class ByteTokenizer:
    """One token for each UTF-8 byte, and one to end; needs no model."""

    EOS = 256
    vocab_size = 257
    eos_token_ids = frozenset({EOS})

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        turns = "".join(f"{m.role}: {m.content}\n" for m in messages)
        return self.encode(turns + "assistant: ")

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(t for t in token_ids if t < self.EOS).decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        return "<end>" if token_id == self.EOS else self.decode([token_id])

    def stream(self) -> TextStream:
        return _ByteStream()


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
        self._config = _read_json(folder / "tokenizer_config.json")
        self._template = _compile_template(_chat_template(folder, self._config))
        self.vocab_size = int(
            _read_json(folder / "config.json").get("vocab_size") or self._tokenizer.get_vocab_size()
        )
        self.eos_token_ids = frozenset(self._find_eos(folder))
        self._texts: dict[int, str] = {}  # of single tokens, as they are asked for

    def encode(self, text: str) -> list[int]:
        return self._encode(text, special_tokens=True)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        if self._template is None:
            raise InvalidRequestError(
                "messages", "this model has no chat template; send prompt with raw, or token_ids"
            )
        specials = {k: self._special(k) for k in ("bos_token", "eos_token")}
        try:
            text = self._template.render(
                messages=[{"role": m.role, "content": m.content} for m in messages],
                add_generation_prompt=True,
                **specials,
            )
        except TemplateError as error:
            raise InvalidRequestError("messages", f"the chat template refuses: {error}") from error
        return self._encode(text, special_tokens=False)

    def _encode(self, text: str, *, special_tokens: bool) -> list[int]:
        # The batch call, since it alone lets other threads run; it is the faster one, too.
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

    def _special(self, name: str) -> str:
        value = self._config.get(name) or ""
        return str(value["content"]) if isinstance(value, dict) else str(value)

    def _find_eos(self, folder: Path) -> set[int]:
        """All ids that end a generation: generation_config's, else config's, and the tokenizer's."""
        found: set[int] = set()
        for name in ("generation_config.json", "config.json"):
            ids = _read_json(folder / name).get("eos_token_id")
            if ids is not None:
                found.update(ids if isinstance(ids, list) else [ids])
                break
        own = self._tokenizer.token_to_id(self._special("eos_token"))
        return found if own is None else found | {own}


class _FolderStream:
    def __init__(self, tokenizer: RustTokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token_id: int) -> str:
        return self._stream.step(self._tokenizer, token_id) or ""


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    loaded = json.loads(path.read_text(encoding="utf-8"))
    return loaded if isinstance(loaded, dict) else {}


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        return own_file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    return template


def _compile_template(source: str | None) -> Any:
    """Compile as transformers does, so that both render the same text."""
    if source is None:
        return None
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    env.globals["raise_exception"] = raise_exception
    env.filters["tojson"] = lambda x, **kw: json.dumps(x, ensure_ascii=False, **kw)
    return env.from_string(source)
