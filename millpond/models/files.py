"""The small text files of a model folder, as transformers lays them out."""

import json
from pathlib import Path
from typing import Any

from millpond.errors import ModelLoadError

TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
# All that a preset is derived from: for a model on the hub, nothing else is fetched.
PRESET_FILES = ("config.json", "generation_config.json", TOKENIZER_CONFIG, CHAT_TEMPLATE)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file, empty if there is no file. Raises ModelLoadError for anything else."""
    if not path.is_file():
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path}: {error}") from error
    if not isinstance(loaded, dict):
        raise ModelLoadError(f"{path}: not a JSON object")
    return loaded


def read_chat_template(folder: Path) -> str | None:
    """The source of the chat template; None for a base model, which has none.

    A template file takes precedence over the tokenizer's config. Of several named templates the default
    one is used, as in transformers for a chat without tools.
    """
    file = folder / CHAT_TEMPLATE
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ModelLoadError(f"{file}: {error}") from error
    template = read_json(folder / TOKENIZER_CONFIG).get("chat_template")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def read_special_tokens(folder: Path) -> dict[str, str]:
    """The named special tokens, ``bos_token`` and the like, as transformers has them."""
    config = read_json(folder / TOKENIZER_CONFIG)
    if "added_tokens_decoder" not in config:  # saved by an older transformers
        config |= read_json(folder / "special_tokens_map.json")
    named = {name: token for name, token in config.items() if name.endswith("_token")}
    for group in ("extra_special_tokens", "model_specific_special_tokens"):
        if isinstance(config.get(group), dict):
            named |= config[group]
    texts = {k: t.get("content") if isinstance(t, dict) else t for k, t in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}
