"""A model's sizes, read from its config.json alone: no weights, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from millpond.errors import InvalidRequestError, UnsupportedModelError

SIZE_NAMES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)

Bias = Literal["none", "always", "by setting"]


@dataclass(frozen=True, slots=True)
class _Family:
    """How the parameters of a family's layers differ from those of a plain Llama.

    "by setting": ``attention_bias`` or ``mlp_bias`` in the config decides. ``tied``, ``head_dim`` and
    ``kv_heads`` are the family's defaults for a config that does not have them.
    """

    qkv_bias: Bias = "by setting"
    out_bias: Bias = "by setting"
    mlp_matrices: int = 3
    mlp_bias: Bias = "by setting"
    layer_norms: int = 2
    norm_bias: bool = False
    head_norms: bool = False
    head_bias: bool = False
    tied: bool = False
    head_dim: int | None = None
    kv_heads: int | None = None


_FAMILIES = {
    "llama": _Family(),
    "granite": _Family(),
    "mistral": _Family("none", "none", mlp_bias="none", kv_heads=8),
    "phi3": _Family("none", "none", mlp_bias="none"),
    "qwen2": _Family("always", "none", mlp_bias="none", kv_heads=32),
    "qwen3": _Family(mlp_bias="none", head_norms=True, head_dim=128, kv_heads=32),
    "gemma": _Family(mlp_bias="none", tied=True, head_dim=256, kv_heads=16),
    "gemma3_text": _Family(
        mlp_bias="none", layer_norms=4, head_norms=True, tied=True, head_dim=256, kv_heads=4
    ),
    "phi": _Family(
        "always",
        "always",
        mlp_matrices=2,
        mlp_bias="always",
        layer_norms=1,
        norm_bias=True,
        head_bias=True,
    ),
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of a decoder-only transformer. ``parameters`` counts tied embeddings once; None for
    families whose parameters cannot be counted here."""

    model_type: str
    num_layers: int
    hidden_size: int
    inner_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_tokens: int
    parameters: int | None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Architecture":
        """Read the fields of a config.json. Raises InvalidRequestError naming a missing or wrong field,
        and UnsupportedModelError for anything but a decoder-only text model."""
        if "text_config" in config or config.get("is_encoder_decoder"):
            raise UnsupportedModelError(
                f"{config.get('model_type')}: only decoder-only text models can be planned"
            )
        model_type = config.get("model_type")
        if not isinstance(model_type, str):
            raise InvalidRequestError("config.json: model_type", "is missing")
        family = _FAMILIES.get(model_type, _Family())
        hidden_size = _size(config, "hidden_size")
        num_heads = _size(config, "num_attention_heads")
        head_dim = _size(config, "head_dim", family.head_dim or hidden_size // num_heads)
        sizes = cls(
            model_type=model_type,
            num_layers=_size(config, "num_hidden_layers"),
            hidden_size=hidden_size,
            inner_size=_size(config, "intermediate_size", 4 * hidden_size),
            num_heads=num_heads,
            num_kv_heads=_size(config, "num_key_value_heads", family.kv_heads or num_heads),
            head_dim=head_dim,
            vocab_size=_size(config, "vocab_size"),
            context_tokens=_size(config, "max_position_embeddings", 4096),
            parameters=None,
        )
        if model_type not in _FAMILIES:
            return sizes
        return replace(sizes, parameters=_parameters(sizes, family, config))

    def weights_bytes(self, bytes_each: int) -> int:
        """Raises UnsupportedModelError where the number of parameters is not known."""
        if self.parameters is None:
            raise UnsupportedModelError(
                f"the parameters of {self.model_type} models cannot be counted from a config; "
                f"those of {', '.join(sorted(_FAMILIES))} can"
            )
        return self.parameters * bytes_each

    def kv_bytes_per_token(self, bytes_each: int) -> int:
        """Keys and values of one token over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_each


def _parameters(sizes: Architecture, family: _Family, config: Mapping[str, Any]) -> int:
    hidden, inner = sizes.hidden_size, sizes.inner_size
    queries = sizes.num_heads * sizes.head_dim
    keys = sizes.num_kv_heads * sizes.head_dim
    attention_bias = bool(config.get("attention_bias", False))

    def biased(bias: Bias, setting: bool) -> bool:
        return bias == "always" or (bias == "by setting" and setting)

    layer = hidden * (queries + 2 * keys) + queries * hidden + family.mlp_matrices * hidden * inner
    if biased(family.qkv_bias, attention_bias):
        layer += queries + 2 * keys
    if biased(family.out_bias, attention_bias):
        layer += hidden
    if biased(family.mlp_bias, bool(config.get("mlp_bias", False))):
        layer += (family.mlp_matrices - 1) * inner + hidden
    norm = hidden * (2 if family.norm_bias else 1)
    layer += family.layer_norms * norm
    if family.head_norms:
        layer += 2 * sizes.head_dim
    embedding = sizes.vocab_size * hidden
    tied = bool(config.get("tie_word_embeddings", family.tied))
    head = (0 if tied else embedding) + (sizes.vocab_size if family.head_bias else 0)
    return embedding + sizes.num_layers * layer + norm + head


def _size(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    if value is None:
        value = default
    if value is None:
        raise InvalidRequestError(f"config.json: {name}", "is missing")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidRequestError(f"config.json: {name}", f"{value!r} is not a positive integer")
    return value
