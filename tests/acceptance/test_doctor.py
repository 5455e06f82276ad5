"""``millpond doctor`` on real servers and this machine."""

import json
from pathlib import Path

from redis.asyncio import Redis

from millpond.local.server import RedisServer
from millpond.queue.keys import Keys
from tests.acceptance.conftest import run_command


async def test_a_stack_that_could_start_and_a_server_that_would_lose_jobs(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    given = ("--redis-url", redis_server.url, "--json")
    status, out, err = await run_command("doctor", *given, cwd=tmp_path)
    found = {finding["topic"]: finding for finding in json.loads(out)["findings"]}
    assert (status, err) == (0, ""), out
    for topic in ("server version", "memory policy", "persistence", "queue default", "packages"):
        assert found[topic]["level"] == "ok", found[topic]
    assert {"device", "kernels", "open files", "disk", "model"} <= found.keys()

    async with Redis.from_url(redis_server.url) as redis:
        await redis.config_set("maxmemory-policy", "allkeys-lru")
        await redis.hset(Keys("default")["about"], "version", "7")
    status, out, _ = await run_command("doctor", *given[:2], "--engine", "simulated", cwd=tmp_path)
    assert status == 1
    assert "FAIL  memory policy" in out
    assert "CONFIG SET maxmemory-policy noeviction" in out
    assert "in use in version 7" in out

    await redis_server.stop()
    status, out, _ = await run_command("doctor", *given, "--engine", "simulated", cwd=tmp_path)
    assert status == 1
    assert "cannot be reached" in json.loads(out)["findings"][0]["found"]
