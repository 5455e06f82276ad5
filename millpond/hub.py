"""Files of a model on the hub: downloaded once by `huggingface_hub`, and why they cannot be had."""

import errno
import logging
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

from millpond.errors import ModelLoadError

_NOT_FOUND = "the hub has no such model, or it is private and HF_TOKEN has no access to it"


def is_hub_name(source: str) -> bool:
    """Whether it has the form ``owner/name``."""
    return source.count("/") == 1 and source[0] not in "./~" and not source.endswith("/")


def download(name: str, cache_dir: Path, patterns: Sequence[str]) -> Path:
    """The folder with the model's files of these patterns; those that are there are not fetched again.

    Without a connection a complete earlier download is used. ``HF_ENDPOINT``, ``HF_TOKEN`` and
    ``HF_HUB_OFFLINE`` are heeded. Raises ModelLoadError with the reason in one line.
    """
    # Here, since it takes a tenth of a second, and most models are on disk.
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    # It would write plain text between the logs' JSON lines.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    folder = cache_dir.expanduser() / "hub"
    try:
        found = snapshot_download(name, allow_patterns=list(patterns), cache_dir=folder)
    except Exception as error:  # of the hub, of HTTP, of the file system
        raise ModelLoadError(f"model {name}: {_reason(error, folder)}") from error
    if not (Path(found) / "config.json").is_file():
        raise ModelLoadError(f"model {name}: the hub has no config.json for it")
    return Path(found)


def _reason(error: BaseException, folder: Path) -> str:
    from huggingface_hub import constants, errors

    causes = _chain(error)
    for cause in causes:
        match cause:
            case errors.GatedRepoError():
                return "access to it must be asked for on its page at the hub; then set HF_TOKEN"
            case errors.RepositoryNotFoundError():
                return _NOT_FOUND
            case errors.HFValidationError():
                return "this is no name of a model on the hub"
            case errors.OfflineModeIsEnabled():
                return "it was not downloaded before, and HF_HUB_OFFLINE forbids to fetch it"
            case errors.HfHubHTTPError() if cause.response is not None:
                status = cause.response.status_code
                if status == HTTPStatus.UNAUTHORIZED:  # to strangers, also for what does not exist
                    return _NOT_FOUND
                return f"the hub at {constants.ENDPOINT} answers {status}"
            case OSError() if cause.errno in (errno.ENOSPC, errno.EDQUOT):
                return f"no space is left for it in {folder}"
            case PermissionError() | NotADirectoryError():
                return f"it cannot be written: {cause}"
    last = causes[-1]
    return f"the hub at {constants.ENDPOINT} cannot be reached ({_one_line(last)})"


def _chain(error: BaseException) -> list[BaseException]:
    """The error, and what caused it, and so on."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    return chain


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
