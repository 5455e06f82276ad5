"""One frozen set of settings for all processes: flags, then ``MILLPOND_*`` variables, then a file.

The file is ``millpond.toml`` in the working directory, or the one that ``MILLPOND_CONFIG`` names.
"""

import dataclasses
import difflib
import ipaddress
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from redis.asyncio.connection import parse_url

from millpond.errors import InvalidRequestError
from millpond.models.memory_plan import PREFILL_TOKENS
from millpond.models.presets import PRESETS, Preset, chat_preset, find_preset
from millpond.queue.job_queue import QueueOptions

ENV_PREFIX = "MILLPOND_"
CONFIG_VARIABLE = "MILLPOND_CONFIG"
DEFAULT_CONFIG_FILE = "millpond.toml"
OPEN_TO_ALL = "off-and-i-know-it-is-open"
DEFAULT_MODEL = "smollm2-135m"
HEARTBEATS_A_LEASE = 3

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
# Texts without commas: a list in the file, with commas between them in a flag or a variable.
Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], NoDecode]


_SERVES = {
    *("engine", "dtype", "device", "weights", "adapters", "simulated"),
    *("remote_url", "remote_model", "remote_route"),
}
_PROMISES = QueueOptions()  # whose defaults are the settings'


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, frozen=True, extra="forbid", allow_inf_nan=False
    )

    # Where things are
    redis_url: str = "redis://127.0.0.1:6379/0"
    queue: str = Field(default="default", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$")
    allow_eviction: bool = Field(
        default=False, description="Run on a server whose maxmemory-policy may drop accepted jobs."
    )
    data_dir: Path = Path("data")
    cache_dir: Path = Field(default_factory=lambda: Path.home() / ".cache" / "millpond")

    # The model and the engine
    model: str | None = Field(
        default=None, description="A preset, a folder, a GGUF file or a hub name."
    )
    engine: Literal["transformers", "simulated", "remote"] = "transformers"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    weights: Literal["auto", "int8"] = Field(
        default="auto",
        description="int8: a byte for each weight, where the CPU has kernels for it.",
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

    # The window and the groups
    window: Literal["at-once", "hybrid", "fixed", "sliding"] = "at-once"
    window_min_jobs: Count = 2
    window_max_jobs: Count = 64
    window_max_wait_ms: Annotated[float, Field(ge=0)] = 200.0
    max_batched_tokens: Annotated[int, Field(ge=16, le=PREFILL_TOKENS)] = Field(
        default=512,
        description="The most that is prefilled between two decode steps; a long prompt goes in "
        "chunks.",
    )
    group_padded_tokens: Count = Field(
        default=4096, description="Prefill budget of one group, padding included."
    )

    # The queue's promises
    lease_s: Seconds = _PROMISES.lease_s
    heartbeat_s: Seconds = Field(default=1.0, validate_default=True)
    max_attempts: Count = _PROMISES.max_attempts
    max_deaths: Count = Field(
        default=_PROMISES.max_deaths,
        description="Workers that may die while they run a job and nothing else.",
    )
    suspect_wait_s: Annotated[float, Field(ge=0)] = Field(
        default=_PROMISES.suspect_wait_s,
        description="Jobs to be tried alone wait this long for an idle worker; then one drains.",
    )
    retry_delay_s: Seconds = _PROMISES.retry_delay_s
    retry_delay_max_s: Seconds = Field(default=_PROMISES.retry_delay_max_s, validate_default=True)
    result_ttl_s: Seconds = _PROMISES.result_ttl_s
    event_ttl_s: Seconds = _PROMISES.event_ttl_s
    event_maxlen: Count = _PROMISES.event_maxlen
    max_depth: Count = _PROMISES.max_depth
    max_tenant_bytes: Count = Field(
        default=_PROMISES.max_tenant_bytes,
        description="What may be stored for a tenant: requests of its unfinished jobs, and results.",
    )
    ageing_ms: Annotated[float, Field(ge=0)] = Field(
        default=_PROMISES.ageing_ms,
        description="A job waits this long for each token that it is longer than a newer one.",
    )

    # The worker
    grace_s: Annotated[float, Field(ge=0)] = Field(
        default=20.0, description="After SIGTERM, time for running rows to finish."
    )
    turn_limit_s: Seconds = Field(
        default=30.0,
        description="A turn past this, and far past what turns took lately, means a hung engine.",
    )
    delta_interval_ms: Annotated[float, Field(ge=0)] = Field(
        default=50.0, description="Streamed text is written at most this often for each job."
    )

    liveness_timeout_s: Seconds = Field(
        default=30.0,
        validate_default=True,
        description="`millpond up` kills and restarts a worker or an API that is silent for so long.",
    )

    # The API
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    api_processes: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="Processes that serve the API on one port."
    )
    auth: Literal["auto", "on", "off", "off-and-i-know-it-is-open"] = Field(
        default="auto", description="Whether the API asks for keys; auto: unless on loopback."
    )
    allowed_hosts: Names = Field(
        default=(),
        description="Names in a request's Host header; none: loopback's if no keys are asked for there.",
    )
    cors_origins: Names = Field(
        default=(), description="Origins whose web pages may use the API, as https://example.org."
    )
    max_body_bytes: Count = 2 * 1024 * 1024
    max_wait_s: Seconds = 60.0
    max_header_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=32 * 1024, description="Request line and headers of one request together."
    )
    header_timeout_s: Seconds = Field(
        default=10.0, description="Time for the headers to come, and for a body to begin."
    )
    min_body_bytes_per_s: Count = Field(
        default=4096, description="A body that comes more slowly than this is given up."
    )
    keep_alive_s: Seconds = Field(
        default=65.0, description="How long a connection without a request is kept."
    )
    max_connections: Count = Field(
        default=16_384, description="Open connections, streams and long polls included."
    )
    max_idle_connections: Count = Field(
        default=1_024,
        description="Of those, the ones without a request; the longest idle one has to go.",
    )
    max_streams_per_key: Count = Field(
        default=1_000,
        description="Event streams and long polls of one API key, unless the key has its own limit.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("adapters", "simulated", mode="before")
    @classmethod
    def _flags_are_json(cls, value: Any) -> Any:
        """``--set`` gives text, as the environment does, where JSON is read already."""
        return json.loads(value) if isinstance(value, str) else value

    @field_validator("redis_url")
    @classmethod
    def _can_be_connected_to(cls, url: str) -> str:
        parse_url(url)
        return url

    @field_validator("allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _flags_have_commas(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return [name.strip() for name in value.split(",")] if value.strip() else []

    @field_validator("cors_origins")
    @classmethod
    def _any_origin_only_with_keys(
        cls, origins: tuple[str, ...], info: ValidationInfo
    ) -> tuple[str, ...]:
        host, auth = info.data.get("host", ""), info.data.get("auth")
        if "*" in origins and not (auth == "on" or (auth == "auto" and not is_loopback(host))):
            raise ValueError("without keys, * lets every web page use the API; name the origins")
        return origins

    @field_validator("remote_url")
    @classmethod
    def _given_if_needed(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url is None and info.data.get("engine") == "remote":
            raise ValueError("the remote engine needs the base URL of its server")
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return url

    @field_validator("heartbeat_s")
    @classmethod
    def _three_in_a_lease(cls, heartbeat_s: float, info: ValidationInfo) -> float:
        lease_s = info.data.get("lease_s", heartbeat_s * HEARTBEATS_A_LEASE)
        if heartbeat_s * HEARTBEATS_A_LEASE > lease_s:
            raise ValueError(
                f"{heartbeat_s:g} is more than a third of lease_s, which is {lease_s:g}; "
                "a lease must outlive two renewals that fail"
            )
        return heartbeat_s

    @field_validator("liveness_timeout_s")
    @classmethod
    def _longer_than_some_heartbeats(cls, timeout_s: float, info: ValidationInfo) -> float:
        heartbeat_s = info.data.get("heartbeat_s", 0.0)
        if timeout_s < heartbeat_s * HEARTBEATS_A_LEASE:
            raise ValueError(
                f"{timeout_s:g} is less than {HEARTBEATS_A_LEASE} times heartbeat_s, which is "
                f"{heartbeat_s:g}; a worker that is well would be killed"
            )
        return timeout_s

    @field_validator("retry_delay_max_s")
    @classmethod
    def _no_less_than_the_first(cls, max_s: float, info: ValidationInfo) -> float:
        first_s = info.data.get("retry_delay_s", max_s)
        if max_s < first_s:
            raise ValueError(f"{max_s:g} is less than retry_delay_s, which is {first_s:g}")
        return max_s

    @field_validator("auth")
    @classmethod
    def _open_only_if_said_so(cls, auth: str, info: ValidationInfo) -> str:
        host = info.data.get("host", "")
        if auth == "off" and not is_loopback(host):
            raise ValueError(
                f"the host {host!r} can be reached from elsewhere, and without keys anybody there "
                f"could use it; say on, or {OPEN_TO_ALL} if that is meant"
            )
        return auth

    @property
    def auth_required(self) -> bool:
        """Whether the API asks for keys."""
        return self.auth == "on" or (self.auth == "auto" and not is_loopback(self.host))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = Path(os.environ.get(CONFIG_VARIABLE, DEFAULT_CONFIG_FILE))
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=file)

    @property
    def api_url(self) -> str:
        """The API's URL from this machine; 0.0.0.0 is only an address to listen on."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

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

    def queue_options(self) -> QueueOptions:
        """The settings that are options of the queue; they have the same names there."""
        names = {field.name for field in dataclasses.fields(QueueOptions)}
        return QueueOptions(**{name: value for name, value in self if name in names})

    def environment(self) -> dict[str, str]:
        """Environment variables that give a child process the same settings, secrets included."""
        secrets = {
            _variable(name): value.get_secret_value()
            for name, value in self
            if isinstance(value, SecretStr)
        }
        return secrets | {
            _variable(name): _as_text(value)
            for name, value in self.model_dump(mode="json").items()
            if value is not None and _variable(name) not in secrets
        }


def load_settings(assigned: Mapping[str, str] | None = None, /, **flags: Any) -> Settings:
    """Settings with the given flags on top; a flag that is None was not given.

    ``assigned`` are settings by name, as ``--set`` gives them; a flag of its own goes before them.
    Raises InvalidRequestError naming the first setting that is wrong.
    """
    given = dict(assigned or {}) | {k: value for k, value in flags.items() if value is not None}
    _check_variables()
    named = os.environ.get(CONFIG_VARIABLE)
    if named is not None and not Path(named).is_file():
        raise InvalidRequestError(CONFIG_VARIABLE, f"there is no file {named}")
    try:
        return Settings(**given)
    except TOMLDecodeError as error:
        file = named or DEFAULT_CONFIG_FILE
        raise InvalidRequestError(file, f"is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            place = "" if name in given else f" (in {named or DEFAULT_CONFIG_FILE})"
            raise InvalidRequestError(name, _no_such_setting(name) + place) from error
        raise InvalidRequestError(name, first["msg"].removeprefix("Value error, ")) from error


def _check_variables() -> None:
    """A misspelt variable would silently leave its setting at the default."""
    known = {CONFIG_VARIABLE, *map(_variable, Settings.model_fields)}
    for variable in sorted(os.environ):
        if variable.upper().startswith(ENV_PREFIX) and variable.upper() not in known:
            name = variable.upper().removeprefix(ENV_PREFIX).lower()
            raise InvalidRequestError(variable, _no_such_setting(name, show=_variable))


def _no_such_setting(name: str, show: Callable[[str], str] = str) -> str:
    near = difflib.get_close_matches(name, Settings.model_fields, n=1)
    return "there is no such setting" + (f"; did you mean {show(near[0])}?" if near else "")


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(value)
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _variable(name: str) -> str:
    """The environment variable of a setting."""
    return ENV_PREFIX + name.upper()


def is_loopback(host: str) -> bool:
    """Whether an address to bind to is reached from this machine alone. Unknown names are not."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
