"""No prompt is in any log, whatever goes wrong, at the level that says most."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
import structlog

from millpond.local.server import RedisServer
from millpond.logs import configure_logs
from millpond.messages import JobRequest, JobStatus
from millpond.models.presets import PRESETS
from millpond.models.tokenization import ByteTokenizer
from millpond.queue.connection import connect
from millpond.queue.job_queue import JobQueue, QueueOptions
from millpond.queue.results import Results
from millpond.queue.subscriptions import Subscriptions
from tests.acceptance.conftest import Up, until
from tests.acceptance.conftest import up as up  # the fixture
from worker.engines.base import EngineConfig, GenerationRequest, Rejection
from worker.engines.simulated import SimulatedEngine
from worker.window import WindowPolicy
from worker.worker import Worker, WorkerOptions

CANARY = "canary-in-a-coal-mine"
JSON = {"Content-Type": "application/json"}

# Good ones and every kind of bad one, each with the canary where a prompt could be.
BODIES = [
    f'{{"prompt": "{CANARY}", "max_tokens": 5}}',
    f'{{"prompt": "{CANARY}", "max_tokens": 0}}',
    f'{{"prompt": "{CANARY}", "{CANARY}": 1}}',
    f'{{"prompt": ["{CANARY}"]}}',
    f'{{"prompt": "{CANARY}',
    f'{{"prompt": "{CANARY}", "model": "{CANARY}"}}',
    f'{{"prompt": "{CANARY}\\ud800"}}',
    f'{{"messages": [{{"role": "{CANARY}", "content": "{CANARY}"}}]}}',
    f'{{"prompt": "{CANARY * 3000}"}}',
    f'{{"prompt": "{CANARY}", "metadata": {{"{CANARY}": "{CANARY}"}}, "stop": ["{CANARY}"]}}',
]


async def test_no_process_logs_a_prompt(up: Callable[..., Awaitable[Up]]) -> None:
    running = await up("--engine", "simulated", "--port", "0", "--set", "log_level=debug")
    async with httpx.AsyncClient(base_url=running.about.api_url, timeout=30) as http:

        async def send_all() -> None:
            for body in BODIES:
                await http.post("/v1/jobs", content=body.encode(), headers=JSON)
                bulk = f'{{"jobs": [{body}]}}'
                await http.post("/v1/jobs/bulk", content=bulk.encode(), headers=JSON)

        await send_all()
        accepted = await http.post("/v1/jobs", content=BODIES[0].encode(), headers=JSON)
        done = await http.get(accepted.headers["Location"], params={"wait": 20})
        assert done.json()["status"] == "succeeded"
        # Outages in the midst of it: every error on the way is logged. The server comes back at once.

        async def refused() -> bool:
            if (server := running.children().get("redis")) is not None:
                server.send_signal(signal.SIGKILL)
            await send_all()
            return "queue_unavailable" in (running.data / "api.log").read_text()

        await until(refused)
    await running.stop()
    logs = {path.name: path.read_text(errors="replace") for path in running.data.rglob("*.log")}
    assert {"api.log", "worker.log", "redis.log"} <= logs.keys()
    assert '"level": "debug"' in logs["worker.log"], "nothing was said, so nothing was shown"
    for name, text in {**logs, "terminal": running.printed}.items():
        assert CANARY not in text, name


class TellingEngine(SimulatedEngine):
    """Breaks with what it was given in the text of its error."""

    def admit(self, requests: "list[GenerationRequest]") -> list[Rejection]:
        prompts = [bytes(request.prompt_token_ids) for request in requests]
        raise KeyError(f"cannot run {prompts}")


async def test_a_broken_engine_tells_no_prompt_to_log_or_neighbour(
    redis_server: RedisServer,
) -> None:
    redis = connect(redis_server.url)
    queue = JobQueue(redis, "default", QueueOptions(max_attempts=1))
    preset, tokenizer = PRESETS["simulated"], ByteTokenizer()
    config = EngineConfig("simulated", None, preset, slots=4)
    mine = (await queue.submit(JobRequest(prompt=CANARY, raw=True), tenant="mine")).id
    theirs = (await queue.submit(JobRequest(prompt="b", raw=True), tenant="theirs")).id
    worker = Worker(
        queue,
        lambda: TellingEngine(config, tokenizer),
        tokenizer,
        preset,
        WorkerOptions("w1", WindowPolicy.hybrid(2, 4, 0.02), heartbeat_s=0.05, grace_s=1.0),
    )
    subscriptions = Subscriptions(redis)
    results = Results(redis, "default", subscriptions)
    with structlog.testing.capture_logs() as said:
        task = asyncio.create_task(worker.run())
        views = [await results.wait(id, 10) for id in (mine, theirs)]
        worker.stop()
        worker.stop()
        [ended] = await asyncio.gather(task, return_exceptions=True)
    broke = [entry for entry in said if entry["event"] == "engine_broke"]
    assert {entry["kind"] for entry in broke} == {"KeyError"}
    assert CANARY not in f"{said} {ended}"
    for view in views:
        assert view.status is JobStatus.FAILED
        assert view.result is not None
        assert view.result.error is not None
        assert view.result.error.message == "the engine broke: KeyError"
    await subscriptions.close()
    await redis.aclose()


def test_a_traceback_is_logged_without_the_exceptions_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logs("debug")
    try:
        log = structlog.get_logger("test")
        try:
            raise ValueError(CANARY)
        except ValueError as error:
            log.exception("broke")
            log.error("broke", exc_info=error)
            log.debug("broke", exc_info=(type(error), error, error.__traceback__))
    finally:
        structlog.reset_defaults()
    said = capsys.readouterr().err
    assert said.count("ValueError") == 3
    assert Path(__file__).name in said
    assert CANARY not in said
