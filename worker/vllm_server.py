"""vLLM as a child process: started, watched and stopped by the worker whose rows it generates.

The worker speaks to it through the remote engine, which keeps its rows while the child is away.
"""

import asyncio
import contextlib
import os
import secrets
import shlex
import shutil
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import structlog

from millpond.errors import ModelLoadError
from millpond.local.child import Child
from millpond.local.server import free_port
from millpond.local.stack_events import StackEvent
from millpond.models.presets import Preset
from millpond.settings import Settings
from millpond.tasks import end_tasks
from worker.engines.remote.config import RemoteConfig

NAME = "vllm"
HOST = "127.0.0.1"
# vLLM's own default share of a card's memory, of which `memory_share` leaves a part.
GPU_MEMORY_SHARE = 0.9
LOOK_EVERY_S = 0.5
LOOK_TIMEOUT_S = 5.0
STOP_S = 15.0

log = structlog.get_logger("millpond.vllm")


class VllmFailedError(ModelLoadError):
    """The child does not stay up."""

    code = "vllm_failed"


def argv(settings: Settings, preset: Preset, folder: Path, port: int) -> list[str]:
    """The command line. `vllm_args` come last, so that they override what is derived here."""
    arguments = [
        *(settings.vllm_command, "serve", str(folder)),
        *("--host", HOST, "--port", str(port)),
        *("--served-model-name", preset.name),
        *("--dtype", settings.dtype),
        *("--max-model-len", str(preset.context_tokens)),
        *("--max-num-seqs", str(settings.slots)),
        *("--gpu-memory-utilization", f"{GPU_MEMORY_SHARE * settings.memory_share:.3f}"),
    ]
    if settings.adapters:
        modules = [f"{name}={place}" for name, place in sorted(settings.adapters.items())]
        arguments += ["--enable-lora", "--lora-modules", *modules]
    return arguments + shlex.split(settings.vllm_args or "")


@contextlib.asynccontextmanager
async def running_vllm(
    settings: Settings, preset: Preset, folder: Path
) -> AsyncIterator["VllmServer"]:
    """Start the child, and stop it at the end. It becomes ready later.

    Raises ModelLoadError if there is no such command.
    """
    if shutil.which(settings.vllm_command) is None:
        raise ModelLoadError(
            f"vllm_command: there is no command {settings.vllm_command!r}; install vLLM, or name the "
            "command of the virtual environment that has it, as /opt/vllm/bin/vllm"
        )
    data_dir = settings.data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    key = secrets.token_urlsafe(24)
    port = free_port()
    child = Child(
        NAME,
        argv(settings, preset, folder, port),
        _environment(settings.vllm_command) | {"VLLM_API_KEY": key},
        stop_s=STOP_S,
        say=_log,
        log=data_dir / f"{NAME}-{settings.queue}.log",
    )
    upstream = RemoteConfig(
        url=f"http://{HOST}:{port}/v1",
        model=preset.name,
        api_key=key,
        timeout_s=settings.remote_timeout_s,
    )
    await child.start()
    server = VllmServer(child, upstream, settings.vllm_silence_s)
    watching = asyncio.create_task(server.watch(), name="watch-vllm-health")
    try:
        yield server
    finally:
        await end_tasks(watching)
        await child.stop()


@dataclass(slots=True)
class VllmServer:
    """The running child. ``upstream`` is how the remote engine reaches it. Once it was ready, it may be
    silent for ``silence_s``."""

    child: Child
    upstream: RemoteConfig
    silence_s: float

    async def watch(self) -> None:
        """Notice that it is ready; kill it if it hangs after that."""
        health = self.upstream.url.removesuffix("/v1") + "/health"
        heard_s = time.monotonic()
        async with httpx.AsyncClient(timeout=min(LOOK_TIMEOUT_S, self.silence_s)) as http:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await http.get(health)).status_code == httpx.codes.OK:
                        self.child.mark_ready()
                        heard_s = time.monotonic()
                if not self.child.ready:
                    heard_s = time.monotonic()
                elif time.monotonic() - heard_s > self.silence_s:
                    log.error("vllm_silent", for_s=self.silence_s)
                    with contextlib.suppress(ProcessLookupError):
                        self.child.signal(signal.SIGKILL)
                await asyncio.sleep(LOOK_EVERY_S)

    async def failed(self) -> VllmFailedError:
        """Wait until it has died so often that starting it again is pointless."""
        while (reason := self.child.hopeless) is None:
            await asyncio.sleep(LOOK_EVERY_S)
        return VllmFailedError(reason)


def _environment(command: str) -> dict[str, str]:
    """vLLM finds its compiler and tools on the PATH; those of its own environment come first.

    It must not see this environment's packages.
    """
    folder = str(Path(shutil.which(command) or command).absolute().parent)
    return {"PATH": os.pathsep.join([folder, os.environ.get("PATH", "")]), "PYTHONPATH": ""}


def _log(event: StackEvent) -> None:
    level = {"error": log.error, "warning": log.warning}.get(event.level, log.info)
    level("vllm", said=event.message)
