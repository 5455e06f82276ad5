"""Settings from flags, environment variables and a file, with errors that name the setting."""

import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Any

from pydantic import ValidationError

from millpond.errors import InvalidRequestError
from millpond.settings.settings import Settings
from millpond.settings.variables import (
    CONFIG_VARIABLE,
    DEFAULT_CONFIG_FILE,
    ENV_PREFIX,
    variable_of,
)


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
    known = {CONFIG_VARIABLE, *map(variable_of, Settings.model_fields)}
    for variable in sorted(os.environ):
        if variable.upper().startswith(ENV_PREFIX) and variable.upper() not in known:
            name = variable.upper().removeprefix(ENV_PREFIX).lower()
            raise InvalidRequestError(variable, _no_such_setting(name, show=variable_of))


def _no_such_setting(name: str, show: Callable[[str], str] = str) -> str:
    near = difflib.get_close_matches(name, Settings.model_fields, n=1)
    return "there is no such setting" + (f"; did you mean {show(near[0])}?" if near else "")
