"""``millpond models``: a model that is served no more can be taken from the list."""

from pathlib import Path

from redis.asyncio import Redis

from millpond.local.server import RedisServer
from millpond.messages import JobRequest
from millpond.queue.directory import AnnouncedQueue, QueueDirectory
from millpond.queue.job_queue import JobQueue
from tests.acceptance.conftest import run_command


async def test_a_model_is_listed_and_forgotten(redis_server: RedisServer, tmp_path: Path) -> None:
    async def models(*arguments: str) -> tuple[int, str]:
        code, out, err = await run_command(
            "models", *arguments, "--redis-url", redis_server.url, cwd=tmp_path
        )
        return code, out + err

    redis = Redis.from_url(redis_server.url)
    async with redis:
        for name in ("busy", "idle"):
            about = AnnouncedQueue(model=f"model-{name}", source="simulated", engine="simulated")
            await QueueDirectory(redis).announce(name, about)
        await JobQueue(redis, "busy").submit(JobRequest(prompt="hello"))

        code, out = await models("list")
        assert code == 0
        rows = {line.split()[0]: line.split() for line in out.splitlines() if "model-" in line}
        assert rows["model-busy"] == ["model-busy", "busy", "simulated", "0", "1"]
        assert rows["model-idle"][-1] == "0"

        assert (await models("forget", "model-idle"))[0] == 0
        code, out = await models("forget", "model-idle")
        assert (code, "no queue serves it" in out) == (2, True)
        code, out = await models("forget", "model-busy")
        assert (code, "unfinished jobs: 1" in out) == (2, True)
        assert (await models("forget", "model-busy", "--force"))[0] == 0
        assert (await models("list"))[1].strip() == "No worker has been here yet."
