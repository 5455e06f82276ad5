"""How the two services are started: as processes of this same Python, wherever Millpond lies.

In the tree the packages ``api`` and ``worker`` lie beside ``millpond``. An installed wheel has them
inside it, for packages of these names would be in the way of others (docs/decisions). Either way a
process finds them by its ``PYTHONPATH``.
"""

import os
import sys
from pathlib import Path
from typing import Literal

Service = Literal["api", "worker"]


def services_folder() -> Path:
    """The folder that has the two packages in it."""
    package = Path(__file__).parent
    inside = package / "services"
    return inside if inside.is_dir() else package.parent


def service_argv(name: Service) -> list[str]:
    """``-P``: a folder ``api`` of the user's own, in the working directory, is not meant."""
    return [sys.executable, "-P", "-m", name]


def service_environment() -> dict[str, str]:
    """What the process needs beside its settings."""
    path = [str(services_folder()), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path)}
