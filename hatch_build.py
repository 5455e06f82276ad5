"""A wheel with prebuilt kernels inside is for their machine; without them it is for all."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PREBUILT = Path("worker/engines/native/prebuilt")


class PrebuiltKernels(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        libraries = sorted((Path(self.root) / PREBUILT).glob("*.so"))
        if version == "editable" or not libraries:
            return
        [machine] = {path.name.split("-")[0] for path in libraries}
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-manylinux_2_17_{machine}"
        for path in libraries:
            inside = Path("millpond/services") / PREBUILT / path.name
            build_data["force_include"][str(path)] = str(inside)
