"""Where the API listens, who may use it, and what it bears."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from millpond.settings.addresses import is_loopback
from millpond.settings.types import Count, Names, Seconds

OPEN_TO_ALL = "off-and-i-know-it-is-open"


class ApiSettings(BaseModel):
    """Address, access and limits of the HTTP API."""

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

    @property
    def api_url(self) -> str:
        """The API's URL from this machine; 0.0.0.0 is only an address to listen on."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
