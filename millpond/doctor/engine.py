"""What would compute: the worker's packages, the device, the compiled kernels; or the upstream.

Only the worker knows torch, so it is asked in a process of its own (`worker/doctor.py`).
"""

import asyncio
import os
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import orjson

from millpond.doctor.findings import Finding, error, ok, warning
from millpond.local.services import service_argv, service_environment
from millpond.settings import Settings

# Torch takes seconds to import, and a first compilation some more.
PATIENCE_S = 120.0
UPSTREAM_PATIENCE_S = 5.0


async def examine_engine(settings: Settings) -> list[Finding]:
    if settings.engine == "simulated":
        return [ok("engine", "simulated: text without a model, for tests")]
    if settings.engine == "remote":
        return [await examine_upstream(settings)]
    if settings.engine == "vllm":
        return [judge_vllm(settings.vllm_command, shutil.which(settings.vllm_command))]
    facts = await _worker_facts(settings)
    return [facts] if isinstance(facts, Finding) else list(judge_engine(facts))


async def _worker_facts(settings: Settings) -> dict[str, Any] | Finding:
    [python, *flags, _] = service_argv("worker")
    process = await asyncio.create_subprocess_exec(
        *(python, *flags, "worker.doctor"),
        env=os.environ | settings.environment() | service_environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        return error("engine", f"no answer in {PATIENCE_S:g} s", "try millpond worker alone")
    if process.returncode:
        last = err.decode(errors="replace").strip().rpartition("\n")[2]
        return error("engine", last or "the worker cannot start", "see millpond worker")
    found: dict[str, Any] = orjson.loads(out)
    return found


def judge_engine(facts: dict[str, Any]) -> Iterator[Finding]:
    """``facts`` are those of `worker/doctor.py`."""
    if missing := facts.get("missing_package"):
        yield error(
            "packages",
            f"{missing} is not installed",
            "pip install 'millpond[worker]', see the README",
        )
        return
    yield ok("packages", f"torch {facts['torch']}, transformers {facts['transformers']}")
    if refused := facts.get("device_error"):
        yield error("device", refused, "--set device=auto, or a torch build for this card")
        return
    device = f"{facts['device']} in {facts['dtype']}"
    if facts["device"] == "cpu" and facts["card_here"]:
        yield warning(
            "device",
            f"{device}, though there is an NVIDIA card: this torch does not see it",
            "install the build for its driver: README, Choosing a torch build",
        )
    else:
        yield ok("device", device)
    if facts["device"] == "cpu":
        yield from _kernels(facts)


def _kernels(facts: dict[str, Any]) -> Iterator[Finding]:
    compiler = facts["compiler"]
    install = "install gcc, or pip install 'millpond[compiler]'"
    if facts["kernels"] is not None:
        yield ok("kernels", f"{facts['kernels']}, compiled for this processor")
    elif facts["kernels_for_processor"]:
        yield warning(
            "kernels",
            f"cannot be compiled, so torch computes, several times slower: {facts['kernels_error']}",
            install,
        )
    else:
        yield warning(
            "kernels",
            f"{facts['kernels_error']}: torch computes, several times slower",
            "a processor with AVX2 or AVX-512, a higher cpu_isa, or a card",
        )
    if compiler is not None:
        yield ok("compiler", compiler)
    elif facts["kernels"] is not None:
        yield warning(
            "compiler",
            "none; the kernels in the cache serve until an upgrade changes them",
            install,
        )


def judge_vllm(command: str, path: str | None) -> Finding:
    if path is None:
        return error(
            "vllm",
            f"there is no command {command}",
            "install vLLM, or --set vllm_command=/opt/vllm/bin/vllm",
        )
    return ok("vllm", path)


async def examine_upstream(settings: Settings) -> Finding:
    """Whether the remote engine's server lists its models."""
    url = f"{(settings.remote_url or '').rstrip('/')}/models"
    key = settings.remote_api_key
    headers = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
    try:
        async with httpx.AsyncClient(timeout=UPSTREAM_PATIENCE_S) as http:
            answer = await http.get(url, headers=headers)
    except httpx.HTTPError as failed:
        return error(
            "upstream", f"{url}: {type(failed).__name__}", "start it, or correct remote_url"
        )
    if answer.status_code != httpx.codes.OK:
        return error(
            "upstream", f"{url} answers {answer.status_code}", "check remote_url and its API key"
        )
    return ok("upstream", f"{url} answers")
