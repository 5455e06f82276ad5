"""Finds a model's config.json without loading the model."""

from pathlib import Path
from typing import Any

from millpond.errors import ModelLoadError
from millpond.models import hub
from millpond.models.files import PRESET_FILES, read_json
from millpond.models.gguf_header import read_gguf_header, read_gguf_tensor_names
from millpond.models.presets import Preset, is_gguf, model_folder

# What GGUF files call the model families and their sizes.
_GGUF_FAMILIES = {
    "gemma": "gemma",
    "gemma3": "gemma3_text",
    "granite": "granite",
    "llama": "llama",
    "phi2": "phi",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
_GGUF_SIZES = {
    "hidden_size": ".embedding_length",
    "intermediate_size": ".feed_forward_length",
    "num_hidden_layers": ".block_count",
    "num_attention_heads": ".attention.head_count",
    "num_key_value_heads": ".attention.head_count_kv",
    "head_dim": ".attention.key_length",
    "vocab_size": "tokenizer.ggml.tokens",
    "max_position_embeddings": ".context_length",
}
_GGUF_FAMILY = "general.architecture"

_BUNDLED = Path(__file__).parent / "configs"


def read_model_config(preset: Preset, cache_dir: Path) -> dict[str, Any]:
    """The config of the model's folder, if that exists; else of the GGUF file's header, or the one bundled
    with the preset; else the hub's.

    Raises ModelLoadError if there is none, or it is not a JSON object.
    """
    if not preset.source:
        raise ModelLoadError(f"model {preset.name} has no weights, so there is nothing to plan")
    own = model_folder(preset, cache_dir) / "config.json"
    if own.is_file():
        return read_json(own)
    if is_gguf(preset.source):
        return _from_gguf(Path(preset.source).expanduser())
    bundled = _BUNDLED / f"{preset.name}.json"
    if bundled.is_file():
        return read_json(bundled)
    return read_json(hub.download(preset.source, cache_dir, PRESET_FILES) / "config.json")


def _from_gguf(file: Path) -> dict[str, Any]:
    header = read_gguf_header(file, (_GGUF_FAMILY, *_GGUF_SIZES.values()))
    tensors = read_gguf_tensor_names(file)
    family = str(header.get(_GGUF_FAMILY))
    return {
        "model_type": _GGUF_FAMILIES.get(family, family),
        **{name: header.get(key) for name, key in _GGUF_SIZES.items()},
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in tensors,
    }
