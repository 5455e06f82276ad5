"""A model's identity, by the content of its files: all workers of a queue must have the same.

The weights themselves are too large to read at each start, so models that differ in nothing else look
alike. Number formats and devices may differ: a queue may have workers on a CPU and on a card.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from millpond.models.presets import Preset

# Kept as text, since its order matters.
_TEXTS = ("tokenizer.json", "chat_template.jinja")
_OBJECTS = ("config.json", "generation_config.json", "tokenizer_config.json")
# These say where a model comes from, not what it is.
_PASSING = frozenset(
    {"_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype"}
)
# What a preset says that changes no text: its name, where it comes from, what prompts suit it.
_TOLD = frozenset({"name", "source", "languages"})
_DIGITS = 16


def model_identity(folder: Path | None, preset: Preset, *, made_by: str) -> str:
    """``FILES-PRESET``: digests of the model's files and of the preset's defaults, limits, adapters.

    ``folder`` is None for a model without files; ``made_by`` then says what generates the text.
    """
    files = _digest(made_by.encode()) if folder is None else folder_digest(folder)
    behaviour = {k: v for k, v in asdict(preset).items() if k not in _TOLD}
    return f"{files}-{_digest(_canonical(behaviour))}"


def folder_digest(folder: Path) -> str:
    """Digest of the config and the tokenizer; a missing file counts as empty."""
    parts = []
    for name in _OBJECTS:
        parts.append(_canonical(_without_passing(_read_object(folder / name))))
    for name in _TEXTS:
        path = folder / name
        parts.append(path.read_bytes() if path.is_file() else b"")
    return _digest(*parts)


def difference(one: str, other: str) -> str:
    """In words, where two identities differ."""
    if one.partition("-")[0] != other.partition("-")[0]:
        return "its config or tokenizer files differ"
    return "its preset differs (system prompt, sampling defaults, limits or adapters)"


def _digest(*parts: bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()[:_DIGITS]


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()


def _read_object(path: Path) -> dict[str, Any]:
    """An unreadable file counts as empty here; loading the model reports it with a clear error."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _without_passing(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _PASSING}
