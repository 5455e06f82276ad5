"""All settings of all processes, in one frozen object."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from millpond.errors import InvalidRequestError
from millpond.queue.connection import Address
from millpond.settings.api import ApiSettings
from millpond.settings.batches import BatchSettings
from millpond.settings.model import ModelSettings
from millpond.settings.queue import QueueSettings
from millpond.settings.variables import (
    CONFIG_VARIABLE,
    DEFAULT_CONFIG_FILE,
    ENV_PREFIX,
    as_text,
    variable_of,
)
from millpond.settings.webhooks import WebhookSettings


class Settings(
    ModelSettings, QueueSettings, ApiSettings, BatchSettings, WebhookSettings, BaseSettings
):
    """Built once, where a process starts, and passed down."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, frozen=True, extra="forbid", allow_inf_nan=False
    )

    redis_url: str = "redis://127.0.0.1:6379/0"
    queue: str = Field(default="default", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$")
    allow_eviction: bool = Field(
        default=False, description="Run on a server whose maxmemory-policy may drop accepted jobs."
    )
    data_dir: Path = Path("data")
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("redis_url")
    @classmethod
    def _can_be_connected_to(cls, url: str) -> str:
        try:
            Address.parse(url)
        except InvalidRequestError as error:
            raise ValueError(error.message) from error
        return url

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
    def files_place(self) -> str:
        """Where batch files are kept, as fsspec names it."""
        return self.files_url or str(self.data_dir.resolve() / "files")

    def environment(self) -> dict[str, str]:
        """Environment variables that give a child process the same settings, secrets included."""
        secrets = {
            variable_of(name): value.get_secret_value()
            for name, value in self
            if isinstance(value, SecretStr)
        }
        return secrets | {
            variable_of(name): as_text(value)
            for name, value in self.model_dump(mode="json").items()
            if value is not None and variable_of(name) not in secrets
        }
