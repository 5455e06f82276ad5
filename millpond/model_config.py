"""A model's config.json, wherever it can be had without loading the model."""

import json
import os
from pathlib import Path
from typing import Any

import httpx

from millpond.errors import ModelLoadError
from millpond.presets import Preset, is_gguf, model_folder

_BUNDLED = Path(__file__).parent / "model_configs"
_HUB_URL = "https://huggingface.co"
_HUB_TIMEOUT_S = 20.0


def read_model_config(preset: Preset, cache_dir: Path) -> dict[str, Any]:
    """That of the model's folder, if it is here; else the one kept for the preset; else the hub's.

    Raises ModelLoadError when there is none, or it is no JSON object.
    """
    if not preset.source:
        raise ModelLoadError(f"model {preset.name} has no weights, so there is nothing to plan")
    for path in (
        model_folder(preset, cache_dir) / "config.json",
        _BUNDLED / f"{preset.name}.json",
    ):
        if path.is_file():
            return _parse(path.read_bytes(), str(path))
    if is_gguf(preset.source):
        raise ModelLoadError(
            f"model {preset.name}: a GGUF file has no config.json until a worker has converted it; "
            "start one first, or name the folder of the model that it was made from"
        )
    return _from_hub(preset.source)


def _from_hub(name: str) -> dict[str, Any]:
    base = os.environ.get("HF_ENDPOINT", _HUB_URL).rstrip("/")
    url = f"{base}/{name}/resolve/main/config.json"
    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = httpx.get(url, headers=headers, follow_redirects=True, timeout=_HUB_TIMEOUT_S)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise ModelLoadError(
            f"model {name}: its config.json cannot be fetched from the hub ({error}); give a folder "
            "with one instead"
        ) from error
    return _parse(answer.content, url)


def _parse(text: bytes, origin: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ModelLoadError(f"{origin}: {error}") from error
    if not isinstance(config, dict):
        raise ModelLoadError(f"{origin}: not a JSON object")
    return config
