"""One frozen set of settings for all processes: flags, then ``MILLPOND_*`` variables, then a file.

The file is ``millpond.toml`` in the working directory, or the one that ``MILLPOND_CONFIG`` names.
"""

from millpond.settings.addresses import is_loopback
from millpond.settings.loading import load_settings
from millpond.settings.model import DEFAULT_MODEL
from millpond.settings.settings import Settings
from millpond.settings.variables import CONFIG_VARIABLE, ENV_PREFIX

__all__ = [
    "CONFIG_VARIABLE",
    "DEFAULT_MODEL",
    "ENV_PREFIX",
    "Settings",
    "is_loopback",
    "load_settings",
]
