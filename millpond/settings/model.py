"""Which model is served, and by what."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, SecretStr, ValidationInfo, field_validator

from millpond.models.presets import PRESETS, Preset, chat_preset, find_preset
from millpond.settings.types import Count, CpuIsa, Seconds

DEFAULT_MODEL = "smollm2-135m"


_SERVES = {
    *("engine", "dtype", "device", "weights", "cpu_isa", "adapters", "simulated"),
    *("remote_url", "remote_model", "remote_route", "vllm_args"),
}


class ModelSettings(BaseModel):
    """The model, the engine, and the upstream of the remote engine."""

    cache_dir: Path = Field(default_factory=lambda: Path.home() / ".cache" / "millpond")
    model: str | None = Field(
        default=None, description="A preset, a folder, a GGUF file or a hub name."
    )
    engine: Literal["transformers", "simulated", "remote", "vllm"] = "transformers"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    visible_devices: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9-]+(,[A-Za-z0-9-]+)*$",
        description="The cards that a worker may use, as in CUDA_VISIBLE_DEVICES; by default all.",
    )
    weights: Literal["auto", "int8"] = Field(
        default="auto",
        description="int8: a byte for each weight, where the CPU has kernels for it.",
    )
    cpu_isa: CpuIsa = Field(
        default="auto", description="The most that compiled kernels use of the CPU."
    )
    slots: Count = Field(default=128, description="Rows that the engine decodes at once.")
    kv_tokens: Count | None = Field(default=None, description="Tokens of KV cache in all slots.")
    memory_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Part of the free memory that this worker may plan with."
    )
    adapters: dict[Annotated[str, Field(min_length=1, max_length=64)], str] = Field(
        default={},
        description="LoRA adapters by name, as JSON: their folders, or their names at the upstream.",
    )
    simulated: dict[str, Any] = Field(
        default={},
        description="Costs, faults and tokens_per_step of the simulated engine, as JSON.",
    )

    # The upstream of the remote engine
    remote_url: str | None = Field(
        default=None,
        validate_default=True,
        description="Base URL of an OpenAI-compatible server, as http://host:8000/v1.",
    )
    remote_api_key: SecretStr | None = Field(
        default=None, description="Better in the environment or in a file than in a flag."
    )
    remote_api_key_file: Path | None = Field(default=None, description="Holds the key alone.")
    remote_model: str | None = Field(
        default=None,
        description="The model's name there; by default the first that the server lists.",
    )
    remote_route: Literal["completions", "chat"] = Field(
        default="completions",
        description="completions: token ids and our template; chat: messages and the server's own.",
    )
    remote_timeout_s: Seconds = Field(default=300.0, description="Longest silence of a stream.")

    # The server that the vllm engine starts
    vllm_command: str = Field(
        default="vllm",
        description="The command vllm, also of another virtual environment: /opt/vllm/bin/vllm.",
    )
    vllm_args: str | None = Field(
        default=None,
        description="Further arguments of vllm serve, as --tensor-parallel-size 2.",
    )
    vllm_silence_s: Seconds = Field(
        default=60.0,
        description="A child vLLM that was ready and does not answer /health for so long is killed "
        "and started again.",
    )

    @field_validator("weights")
    @classmethod
    def _of_our_kernels(cls, weights: str, info: ValidationInfo) -> str:
        if weights != "auto" and info.data.get("engine") == "vllm":
            raise ValueError("vLLM quantizes by its own options: give --quantization in vllm_args")
        return weights

    @field_validator("vllm_args")
    @classmethod
    def _can_be_split(cls, given: str | None) -> str | None:
        try:
            shlex.split(given or "")
        except ValueError as error:
            raise ValueError(f"is no command line: {error}") from None
        return given

    @field_validator("adapters", "simulated", mode="before")
    @classmethod
    def _flags_are_json(cls, value: Any) -> Any:
        """``--set`` gives text, as the environment does, where JSON is read already."""
        return json.loads(value) if isinstance(value, str) else value

    @field_validator("remote_url")
    @classmethod
    def _given_if_needed(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url is None and info.data.get("engine") == "remote":
            raise ValueError("the remote engine needs the base URL of its server")
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return url

    def serves(self) -> dict[str, Any]:
        """What decides the texts that come out: two sets of settings with the same are one service."""
        model = self.model_name
        if model not in PRESETS and Path(model).exists():
            model = str(Path(model).resolve())  # the same folder, named from elsewhere
        return {"model": model, **self.model_dump(mode="json", include=_SERVES)}

    @property
    def model_name(self) -> str:
        """The model asked for; the simulated engine needs none."""
        if self.model is not None:
            return self.model
        if self.engine == "remote" and self.remote_route == "chat":
            return self.remote_model or "remote"
        return "simulated" if self.engine == "simulated" else DEFAULT_MODEL

    @property
    def counts_bytes(self) -> bool:
        """Whether there is no tokenizer: each byte of a prompt counts as a token."""
        return self.engine == "simulated" or (
            self.engine == "remote" and self.remote_route == "chat"
        )

    def preset(self) -> Preset:
        """See `find_preset`: asks the hub for a model by hub name. Raises ModelLoadError."""
        if self.engine == "remote" and self.remote_route == "chat":
            preset = chat_preset(self.model_name)
        else:
            preset = find_preset(self.model_name, self.cache_dir)
        return replace(preset, adapters=tuple(sorted(self.adapters)))
