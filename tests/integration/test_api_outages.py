"""Full queues, servers that are away, and the process's own end."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import httpx

from millpond.local.server import RedisServer, free_port
from tests.contract.jobs import a_worker, until
from tests.integration.conftest import RunningApi, StartApi, listening

LIMIT_S = 20.0


async def test_a_full_queue_says_when_to_come_back(
    redis_server: RedisServer, start_api: StartApi
) -> None:
    async with start_api(redis_server.url, max_depth=100) as api:
        await api.queue.beat("w1", a_worker(jobs_per_s=2.5))
        await api.look()
        jobs = {"jobs": [{"prompt": "a"}] * 100}
        assert (await api.http.post("/v1/jobs/bulk", json=jobs)).json()["accepted"] == 100

        answer = await api.http.post("/v1/jobs", json={"prompt": "one more"})

        assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
        assert answer.headers["retry-after"] == "2"
        assert answer.json()["retry_after_s"] == 2
        assert await api.queue.depth() == 100


async def test_without_redis_all_but_health_say_try_later(
    redis_server: RedisServer, start_api: StartApi
) -> None:
    async with start_api(redis_server.url) as api:
        id = await api.submit()
        await redis_server.stop()

        answers = [
            await api.http.post("/v1/jobs", json={"prompt": "a"}),
            await api.http.post("/v1/jobs/bulk", json={"jobs": [{"prompt": "a"}]}),
            await api.http.get(f"/v1/jobs/{id}"),
            await api.http.get(f"/v1/jobs/{id}?wait=1"),
            await api.http.get(f"/v1/jobs/{id}/events"),
            await api.http.delete(f"/v1/jobs/{id}"),
            await api.http.get("/v1/queue"),
            await api.http.get("/v1/models"),
        ]
        for answer in answers:
            assert answer.status_code == 503, answer.request.url
            assert answer.json()["code"] == "queue_unavailable"
            assert int(answer.headers["retry-after"]) >= 1
            assert str(redis_server.options.port) not in answer.text
        assert (await api.http.get("/healthz")).status_code == 200
        ready = await api.http.get("/readyz")
        assert (ready.status_code, ready.json()["redis"]) == (503, False)
        assert "millpond_redis_up 0.0" in (await api.http.get("/metrics")).text

        await redis_server.start()
        assert await api.submit("after the outage")
        await api.queue.beat("w", a_worker())
        await until(lambda: is_ready(api))


async def is_ready(api: RunningApi) -> bool:
    return (await api.http.get("/readyz")).status_code == 200


async def test_the_api_starts_before_redis_does(
    redis_server: RedisServer, start_api: StartApi
) -> None:
    await redis_server.stop()
    async with start_api(redis_server.url) as api:
        assert (await api.http.get("/readyz")).status_code == 503
        await redis_server.start()
        assert await api.submit()


async def test_a_redis_that_hangs_does_not_hold_up_the_end(
    redis_server: RedisServer, start_api: StartApi
) -> None:
    assert redis_server.pid is not None
    async with start_api(redis_server.url) as api:
        id = await api.submit()
        poll = asyncio.create_task(api.http.get(f"/v1/jobs/{id}?wait=60"))
        await listening(api, id)
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            assert (await api.http.get("/readyz")).status_code == 503
            async with asyncio.timeout(5):
                api.server.should_exit = True
                answer = await poll
                assert (answer.status_code, answer.json()["code"]) == (503, "stopping")
                await api.stopped
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)


async def test_a_bug_shows_no_details_and_counts_as_500(api: RunningApi) -> None:
    async def broken() -> None:
        raise ZeroDivisionError("swordfish")

    api.app.add_api_route("/broken", broken)

    answer = await api.http.get("/broken")

    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert answer.headers["content-type"] == "application/problem+json"
    assert "swordfish" not in answer.text
    assert 'route="/broken",status="500"} 1.0' in (await api.http.get("/metrics")).text


async def test_sigterm_ends_the_process_with_0_whoever_waits(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    port = free_port()
    environment = {
        "MILLPOND_REDIS_URL": redis_server.url,
        "MILLPOND_ENGINE": "simulated",
        "MILLPOND_PORT": str(port),
        "MILLPOND_CACHE_DIR": str(tmp_path),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "api", env=environment, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    async with asyncio.timeout(LIMIT_S):
        while b"listening" not in (line := await process.stderr.readline()):
            assert line, "the process ended"
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http:
        id = (await http.post("/v1/jobs", json={"prompt": "secretive"})).json()["id"]
        poll = asyncio.create_task(http.get(f"/v1/jobs/{id}?wait=60"))
        async with http.stream("GET", f"/v1/jobs/{id}/events") as answer:
            lines = answer.aiter_lines()
            assert await anext(lines) == "retry: 1000"
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(4):
                assert [line async for line in lines if line] == []
                assert await process.wait() == 0
        assert (await poll).status_code == 200
    rest = (await process.stderr.read()).decode()
    assert "secretive" not in rest
    assert "Traceback" not in rest
