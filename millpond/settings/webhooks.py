"""Where webhooks may be sent, and how long a receiver may take."""

from typing import Any

from pydantic import BaseModel, Field, field_validator

from millpond.settings.types import Names, Seconds
from millpond.webhooks.addresses import Network, read_networks


class WebhookSettings(BaseModel):
    webhook_allow: Names = Field(
        default=(),
        description="Networks that webhooks may be sent to although they are not public, as 10.1.0.0/16.",
    )
    webhook_timeout_s: Seconds = Field(
        default=15.0, le=60.0, description="Time for a receiver to be found and to answer, in all."
    )

    @field_validator("webhook_allow", mode="before")
    @classmethod
    def _flag_has_commas(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return [name.strip() for name in value.split(",")] if value.strip() else []

    @field_validator("webhook_allow")
    @classmethod
    def _are_networks(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        read_networks(texts)
        return texts

    @property
    def webhook_networks(self) -> tuple[Network, ...]:
        return read_networks(self.webhook_allow)
