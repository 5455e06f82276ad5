"""A transformers model's weights, laid out once for the kernels."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from worker.engines.adapters.reading import Adapter
from worker.engines.native import structs
from worker.engines.native.arena import Arena
from worker.engines.native.lora import LoraPacker
from worker.engines.native.panels import pad, panels
from worker.engines.native.smoothing import ChannelPeaks

Weights = Literal["float32", "bfloat16", "int8"]

_GATES = 32
_MAX_HEAD_DIM = 256
# Families whose layers are what csrc/forward.c computes; the self-check confirms it at each load.
_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "phi3"})


class NotNativeError(Exception):
    """The kernels do not compute this model, and the message says why."""


def check_native(config: Any) -> None:
    """Raise NotNativeError for a model that the kernels do not compute."""
    if config.model_type not in _FAMILIES:
        raise NotNativeError(f"no kernels for models of type {config.model_type}")
    if config.hidden_act not in ("silu", "swish"):
        raise NotNativeError(f"no kernels for the activation {config.hidden_act}")
    if getattr(config, "mlp_bias", False):
        raise NotNativeError("no kernels for biases in the MLP")
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    group = config.num_attention_heads % (config.num_key_value_heads or 1)
    sizes = (config.hidden_size % 32, config.intermediate_size % _GATES, head_dim % 32, group)
    if any(sizes) or head_dim > _MAX_HEAD_DIM:
        raise NotNativeError("the model's sizes are no multiples of 32")
    rope_type = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope_type not in ("default", "linear", "llama3", "yarn"):
        raise NotNativeError(f"no kernels for rope of type {rope_type}")


class NativeModel:
    """Owns the packed weights and the struct that points to them.

    ``context_tokens`` is how far the tables ``rotary``, cosine and sine, reach. ``adapters`` by name.
    """

    def __init__(
        self,
        model: Any,
        windows: Sequence[int | None],
        context_tokens: int,
        weights: Weights,
        calibration: Sequence[int] = (),
        adapters: Mapping[str, Adapter] | None = None,
    ) -> None:
        config = model.config
        self._arena = Arena()
        self._kept: list[torch.Tensor] = []
        self._stored = torch.float32 if weights == "float32" else torch.bfloat16
        self._peaks = ChannelPeaks(model, calibration) if weights == "int8" else None
        self._adapters = LoraPacker(adapters or {}, self._stored, self._place)
        base = model.model
        self.vocab_size = int(config.vocab_size)
        self.hidden_size = int(config.hidden_size)
        self.num_heads = int(config.num_attention_heads)
        self.num_kv_heads = int(config.num_key_value_heads or self.num_heads)
        self.head_dim = int(getattr(config, "head_dim", None) or self.hidden_size // self.num_heads)
        self.inner_size = int(config.intermediate_size)
        self.num_layers = int(config.num_hidden_layers)
        self.rotary = cosine, sine = rotary_tables(base, range(context_tokens), self.hidden_size)
        layers = (structs.Layer * self.num_layers)()
        for i, (target, layer, window) in enumerate(zip(layers, base.layers, windows, strict=True)):
            self._fill_layer(target, layer, window, f"model.layers.{i}")
        final_norm, head = base.norm.weight, model.lm_head.weight
        if self._peaks is not None:
            by = self._peaks.factors(model.lm_head, head)
            final_norm, head = final_norm / by, head * by
        self.struct = structs.Model(
            layers=self.num_layers,
            hidden=self.hidden_size,
            heads=self.num_heads,
            kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            inner=self.inner_size,
            vocab=self.vocab_size,
            rotary_dim=2 * cosine.shape[1],
            epsilon=config.rms_norm_eps,
            scale=base.layers[0].self_attn.scaling * math.log2(math.e),
            embedding=self._keep(base.embed_tokens.weight.detach().to(self._stored)),
            final_norm=self._floats(final_norm),
            cosine=self._keep(cosine),
            sine=self._keep(sine),
            layer=layers,
            head=self._linear(head, model.lm_head.bias),
        )

    @property
    def adapter_numbers(self) -> Mapping[str, int]:
        """By which the kernels know them."""
        return self._adapters.numbers

    @property
    def adapter_columns(self) -> int:
        """The most that any adapter keeps of a token beside a product: about its ranks together."""
        return self._adapters.most_columns

    def _fill_layer(self, target: structs.Layer, layer: Any, window: int | None, path: str) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        if hasattr(attention, "qkv_proj"):
            qkv_names, gate_up_names = ["self_attn.qkv_proj"], ["mlp.gate_up_proj"]
        else:
            qkv_names = [f"self_attn.{name}_proj" for name in "qkv"]
            gate_up_names = ["mlp.gate_proj", "mlp.up_proj"]
        qkv, qkv_bias = _joined(layer, qkv_names)
        gate_up, gate_up_bias = _joined(layer, gate_up_names)
        assert gate_up_bias is None
        norm, mlp_norm = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        by = mlp_by = None
        if self._peaks is not None:
            by = self._peaks.factors(layer.get_submodule(qkv_names[0]), qkv)
            norm, qkv = norm / by, qkv * by
            mlp_by = self._peaks.factors(layer.get_submodule(gate_up_names[0]), gate_up)
            mlp_norm, gate_up = mlp_norm / mlp_by, gate_up * mlp_by
        # 32 gates and their 32 ups share a panel, so that one kernel call has both.
        places = torch.arange(len(gate_up)).view(2, -1, _GATES).transpose(0, 1).flatten()

        def beside(names: Sequence[str], **options: Any) -> Any:
            outputs = {f"{path}.{n}": layer.get_submodule(n).out_features for n in names}
            return self._adapters.beside(outputs, **options)

        target.qkv = self._linear(qkv, qkv_bias)
        target.qkv.lora = beside(qkv_names, input_factors=by)
        target.out = self._linear(attention.o_proj.weight, attention.o_proj.bias)
        target.out.lora = beside(["self_attn.o_proj"])
        target.gate_up = self._linear(gate_up[places], None)
        target.gate_up.lora = beside(gate_up_names, order=places, input_factors=mlp_by)
        # What it reads is too uneven for a byte, even in int8.
        target.down = self._linear(mlp.down_proj.weight, mlp.down_proj.bias, rounded=False)
        target.down.lora = beside(["mlp.down_proj"])
        target.attention_norm = self._floats(norm)
        target.mlp_norm = self._floats(mlp_norm)
        if hasattr(attention, "q_norm"):
            target.query_norm = self._floats(attention.q_norm.weight)
            target.key_norm = self._floats(attention.k_norm.weight)
        target.window = window or 0

    def _linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, rounded: bool = True
    ) -> structs.Linear:
        """With ``rounded`` in bytes, if the weights are to be int8."""
        weight = weight.detach()
        n, k = weight.shape
        linear = structs.Linear(n=n, k=k)
        if bias is not None:
            linear.bias = self._floats(bias)
        if rounded and self._peaks is not None:
            scale = weight.float().abs().amax(dim=1).clamp_(min=1e-12) / 127
            whole = (weight.float() / scale[:, None]).round_().to(torch.int8)
            linear.scale = self._keep(pad(scale))
            linear.sum = self._keep(pad(whole.sum(dim=1, dtype=torch.int32)))
            packed = panels(whole, 4)
        else:
            together = 4 // self._stored.itemsize
            packed = panels(weight.to(self._stored), together)
        linear.weight = self._place(packed)
        return linear

    def _floats(self, tensor: torch.Tensor) -> int:
        return self._keep(tensor.detach().float())

    def _place(self, tensor: torch.Tensor) -> int:
        """Copy the tensor to the memory that the kernels read at each step, and return its address."""
        return self._keep(self._arena.copy(tensor))

    def _keep(self, tensor: torch.Tensor) -> int:
        """Hold on to the tensor's memory and return its address."""
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()


def _joined(layer: Any, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weights of linear layers that read the same, and their biases, one after another."""
    parts = [layer.get_submodule(name) for name in names]
    biases = [part.bias for part in parts if part.bias is not None]
    weight = torch.cat([part.weight.detach() for part in parts])
    return weight, torch.cat(biases) if len(biases) == len(parts) else None


def rotary_tables(
    base: Any, positions: range, hidden_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine for each position, ``[positions, rotary_dim / 2]``, from the model."""
    probe = torch.zeros((1, 1, hidden_size), dtype=torch.float32)
    cosine, sine = base.rotary_emb(probe, torch.arange(positions.start, positions.stop)[None])
    half = cosine.shape[-1] // 2
    return cosine[0, :, :half].float().contiguous(), sine[0, :, :half].float().contiguous()
