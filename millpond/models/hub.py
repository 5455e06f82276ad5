"""Downloads a model's files from the hub with `huggingface_hub`, and says why that failed."""

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
    """A folder with the model's files that match the patterns. Each file is downloaded once.

    Without a connection a complete earlier download is used. Respects ``HF_ENDPOINT``, ``HF_TOKEN`` and
    ``HF_HUB_OFFLINE``. Raises ModelLoadError with the reason in one line.
    """
    # Imported here, since it takes a tenth of a second and most models are on disk.
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    # It would write plain text between the JSON lines of the logs.
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
                return "it is gated: request access on its page on the hub, then set HF_TOKEN"
            case errors.RepositoryNotFoundError():
                return _NOT_FOUND
            case errors.HFValidationError():
                return "this is not a valid model name on the hub"
            case errors.OfflineModeIsEnabled():
                return "it has not been downloaded yet, and HF_HUB_OFFLINE forbids fetching it"
            case errors.HfHubHTTPError() if cause.response is not None:
                status = cause.response.status_code
                if (
                    status == HTTPStatus.UNAUTHORIZED
                ):  # also the answer to anonymous requests for models that do not exist
                    return _NOT_FOUND
                return f"the hub at {constants.ENDPOINT} answers {status}"
            case OSError() if cause.errno in (errno.ENOSPC, errno.EDQUOT):
                return f"no disk space is left for it in {folder}"
            case PermissionError() | NotADirectoryError():
                return f"it cannot be written: {cause}"
    last = causes[-1]
    return f"the hub at {constants.ENDPOINT} cannot be reached ({_one_line(last)})"


def _chain(error: BaseException) -> list[BaseException]:
    """The error, its cause, the cause of that, and so on."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    return chain


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
