"""Settings as environment variables."""

import json
from typing import Any

ENV_PREFIX = "MILLPOND_"
CONFIG_VARIABLE = "MILLPOND_CONFIG"
DEFAULT_CONFIG_FILE = "millpond.toml"


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return ENV_PREFIX + name.upper()


def as_text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(value)
    return json.dumps(value) if isinstance(value, dict) else str(value)
