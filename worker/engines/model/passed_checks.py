"""Which models have passed the long part of the check at load, which takes seconds on a CPU."""

import hashlib
from pathlib import Path

import torch
import transformers

from worker.engines.base import EngineConfig
from worker.engines.model.loading import LoadedModel
from worker.engines.native.kernel_sets import cpu_features

_ENGINES = Path(__file__).parents[1]


class PassedCheck:
    """A file in the cache folder for this model, as this code computes it on this kind of processor.

    Another model, another version of the engine, of torch or of transformers, or another processor has
    another name, and is checked anew.
    """

    def __init__(self, config: EngineConfig, loaded: LoadedModel) -> None:
        assert config.model_folder is not None
        facts = (
            sorted(_stamp(file) for file in config.model_folder.iterdir() if file.is_file()),
            sorted(
                _stamp(f) for f in _ENGINES.rglob("*") if f.suffix in (".py", ".c", ".h", ".txt")
            ),
            (loaded.backend, loaded.dtype_name, config.preset.context_tokens),
            (torch.__version__, transformers.__version__, sorted(cpu_features())),
        )
        name = hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
        self._path = config.cache_dir.expanduser() / "checked" / name

    @property
    def known(self) -> bool:
        return self._path.is_file()

    def remember(self) -> None:
        """Where the folder cannot be written, the next load checks again."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
        except OSError:
            return


def _stamp(file: Path) -> tuple[str, int, int]:
    found = file.stat()
    return str(file), found.st_size, found.st_mtime_ns
