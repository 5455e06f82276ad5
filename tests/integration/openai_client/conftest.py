"""Clients of OpenAI's API that others wrote, against the real API server and a real worker."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from millpond.models.presets import PRESETS, Preset
from millpond.models.tokenization import ByteTokenizer
from tests.integration.conftest import RunningApi
from worker.engines.base import EngineConfig
from worker.engines.simulated import (
    SimulatedConfig,
    SimulatedCosts,
    SimulatedEngine,
    SimulatedFaults,
)
from worker.window import WindowPolicy
from worker.worker import Worker, WorkerOptions

MODEL = "simulated"
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
ECHO = SimulatedFaults(echo_marker="[say]")
PACED = SimulatedCosts(prefill_s_per_token=0.0, decode_s_per_step=0.002, decode_s_per_row=0.0)


@contextlib.asynccontextmanager
async def running_worker(api: RunningApi, preset: Preset = PRESETS[MODEL]) -> AsyncIterator[None]:
    tokenizer = ByteTokenizer()
    config = EngineConfig("simulated", None, preset, slots=8)
    worker = Worker(
        api.queue,
        lambda: SimulatedEngine(config, tokenizer, SimulatedConfig(costs=PACED, faults=ECHO)),
        tokenizer,
        preset,
        WorkerOptions("w1", WindowPolicy.at_once(8), heartbeat_s=0.05, grace_s=5.0),
    )
    task = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.stop()
        worker.stop()
        await task


@pytest.fixture
async def served(api: RunningApi) -> AsyncIterator[RunningApi]:
    async with running_worker(api):
        yield api


def client_of(api: RunningApi, **options: Any) -> openai.AsyncOpenAI:
    options = {"api_key": "none", "max_retries": 0, "timeout": 30.0, **options}
    return openai.AsyncOpenAI(base_url=f"{api.http.base_url}/v1", **options)


@pytest.fixture
async def client(served: RunningApi) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(served) as made:
        yield made


@pytest.fixture
async def unserved(api: RunningApi) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of an API that has no worker."""
    async with client_of(api) as made:
        yield made
