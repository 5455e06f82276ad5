"""What a running API and a worker export, and that the dashboard and the alerts ask for nothing else."""

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator

import httpx
import pytest

from millpond.local.server import RedisServer
from millpond.models.presets import PRESETS
from millpond.models.tokenization import ByteTokenizer
from tests.integration.conftest import RunningApi, StartApi
from tests.monitoring import (
    ALERTS,
    Exported,
    alert_queries,
    alerts,
    dashboard,
    dashboard_queries,
    exported,
    scaling_queries,
    wrong,
)
from worker.engines.base import EngineConfig
from worker.engines.simulated import (
    SimulatedConfig,
    SimulatedCosts,
    SimulatedEngine,
    SimulatedFaults,
)
from worker.metrics import MetricsPortError, WorkerMetrics
from worker.window import WindowPolicy
from worker.worker import Worker, WorkerOptions

FAULTS = SimulatedFaults(error_marker="broken", flaky_marker="shaky")
SIMULATED = SimulatedConfig(costs=SimulatedCosts.free(), faults=FAULTS)


@contextlib.asynccontextmanager
async def working(api: RunningApi, metrics: WorkerMetrics) -> AsyncIterator[None]:
    tokenizer, preset = ByteTokenizer(), PRESETS["simulated"]
    config = EngineConfig("simulated", None, preset, slots=4)
    worker = Worker(
        api.queue,
        lambda: SimulatedEngine(config, tokenizer, SIMULATED),
        tokenizer,
        preset,
        WorkerOptions("w1", WindowPolicy.at_once(4), heartbeat_s=0.05, grace_s=1.0),
        metrics,
    )
    task = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.stop()
        await task


async def api_metrics(api: RunningApi) -> str:
    await api.look()
    return (await api.http.get("/metrics")).text


async def scraped(url: str, start_api: StartApi) -> tuple[str, str, str]:
    """The worker's exposition after jobs of every ending; the API's then, and later while a job waits."""
    metrics = WorkerMetrics("default", "simulated")
    async with start_api(url, retry_delay_s=0.01) as api:
        with metrics.served("127.0.0.1", 0) as port:
            async with working(api, metrics), httpx.AsyncClient() as http:
                ids = [
                    await api.submit(prompt, max_tokens=8, min_tokens=2, **fields)
                    for prompt, fields in (
                        ("well", {}),
                        ("well", {"raw": True, "priority": "batch"}),
                        ("broken", {}),
                        ("shaky", {}),
                    )
                ]
                for id in ids:
                    answer = await api.http.get(f"/v1/jobs/{id}?wait=20")
                    assert answer.json()["status"] in ("succeeded", "failed"), answer.text
                of_api = await api_metrics(api)
                of_worker = (await http.get(f"http://127.0.0.1:{port}/metrics")).text
        await api.submit("nobody takes this")
        too_long = {"X-Too-Long": "x" * 32 * 1024}
        assert (await api.http.get("/healthz", headers=too_long)).status_code == 431
        return of_worker, of_api, await api_metrics(api)


def value(text: str, series: str) -> float:
    """Of the one line that begins with it."""
    [line] = [line for line in text.splitlines() if line.startswith(f"{series} ")]
    return float(line.split()[-1])


async def test_metrics_tell_of_every_ending_and_feed_dashboard_and_alerts(
    redis_server: RedisServer, start_api: StartApi
) -> None:
    of_worker, of_api, later = await scraped(redis_server.url, start_api)
    known = exported(of_worker, of_api, later)
    labels = (
        '{{gen_ai_operation_name="{}",gen_ai_provider_name="millpond",'
        'gen_ai_request_model="simulated",gen_ai_response_model="simulated",queue="default"}}'
    )
    for operation, number in (("chat", 2), ("text_completion", 1)):
        own = labels.format(operation)
        for name in ("time_to_first_token", "time_per_output_token"):
            assert value(of_worker, f"gen_ai_server_{name}_seconds_count{own}") == number
    failed = labels.format("chat").replace("{", '{error_type="generation_failed",', 1)
    assert value(of_worker, f"gen_ai_server_request_duration_seconds_count{failed}") == 1
    attempts = {
        outcome: value(of_worker, f'millpond_attempts_total{{outcome="{outcome}",queue="default"}}')
        for outcome in ("succeeded", "failed", "retry", "given_back", "lost")
    }
    assert attempts == {"succeeded": 3, "failed": 1, "retry": 1, "given_back": 0, "lost": 0}
    assert (
        value(of_worker, 'millpond_queue_wait_seconds_count{priority="batch",queue="default"}') == 1
    )
    read = 'gen_ai_response_model="simulated",gen_ai_token_type="input",queue="default"'
    assert value(of_worker, f"millpond_tokens_total{{{read}}}") > 0
    assert value(of_worker, 'millpond_batch_rows_sum{queue="default"}') > 0
    assert value(of_worker, 'millpond_window_jobs_sum{queue="default"}') == 5
    assert value(of_api, 'millpond_retries_total{queue="default"}') == 1
    assert value(of_api, 'millpond_queue_limit_jobs{queue="default"}') == 100_000
    assert found_wrong(known) == {}


def found_wrong(known: Exported) -> dict[str, list[str]]:
    queries = {**dashboard_queries(), **alert_queries(), **scaling_queries()}
    return {
        name: faults for name, query in queries.items() if (faults := list(wrong(query, known)))
    }


def test_what_nobody_exports_is_found() -> None:
    known = {"millpond_workers": {"queue"}}
    query = (
        'sum by (color) (rate(millpond_worker{queue="a"}[1m])) + max by (color) (millpond_workers)'
    )
    assert list(wrong(query, known)) == [
        "millpond_worker is not exported",
        "millpond_worker is not exported",
        "millpond_workers has no label color",
    ]
    with pytest.raises(ValueError):
        list(wrong("sum by (rate(", known))


def test_alerts_say_what_to_do_and_panels_lie_beside_one_another() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert rule["annotations"].keys() == {"summary", "description"}, rule["alert"]
    places: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        own = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not own & places, f"{panel['title']} covers another panel"
        assert at["x"] + at["w"] <= 24
        places |= own


def test_promtool_takes_the_alerts() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; the rules were parsed all the same")
    checked = subprocess.run([promtool, "check", "rules", ALERTS], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_metrics_port_that_is_taken_is_told() -> None:
    with WorkerMetrics("q", "m").served("127.0.0.1", 0) as port:
        second = WorkerMetrics("q", "m").served("127.0.0.1", port)
        with pytest.raises(MetricsPortError, match=f"port {port}"), second:
            pass
