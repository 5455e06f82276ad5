"""How the services are started: as processes of the same Python, from the tree or a wheel.

In the tree the packages ``api``, ``worker`` and ``background`` are next to ``millpond``. In an installed
wheel they are inside it, since top-level packages of these names would collide with others
(docs/decisions). Either way a process finds them by its ``PYTHONPATH``.
"""

import os
import sys
from pathlib import Path
from typing import Literal

Service = Literal["api", "worker", "background"]


def services_folder() -> Path:
    """The folder that contains their packages."""
    package = Path(__file__).parents[1]
    inside = package / "services"
    return inside if inside.is_dir() else package.parent


def service_argv(name: Service) -> list[str]:
    """``-P``: a folder ``api`` in the user's working directory must not shadow ours."""
    return [sys.executable, "-P", "-m", name]


def service_environment() -> dict[str, str]:
    """What the process needs in addition to its settings."""
    path = [str(services_folder()), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path)}
