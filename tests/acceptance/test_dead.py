"""``millpond dead``: letters of a real queue, listed, shown and run again."""

import json
from pathlib import Path

from redis.asyncio import Redis

from millpond.local.server import RedisServer
from millpond.messages import FinishReason, JobError, JobRequest, JobResult, JobStatus
from millpond.queue.job_queue import JobQueue, QueueOptions
from millpond.queue.submission import NewJob
from tests.acceptance.conftest import run_command


async def test_dead_letters_are_listed_shown_and_run_again(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    redis = Redis.from_url(redis_server.url)
    queue = JobQueue(redis, "default", QueueOptions(max_attempts=1))
    await queue.submit_many([NewJob(JobRequest(prompt="what kills"), "letter-1", "acme")])
    [job] = (await queue.claim("w", 1, budget_tokens=10**6, capacity_tokens=10**6)).jobs
    error = JobError(code="generation_failed", message="broken")
    result = JobResult(
        id=job.id, status=JobStatus.FAILED, finish_reason=FinishReason.ERROR, error=error
    )
    await queue.fail(job.fence, job.attempt, result)
    here = ("--redis-url", redis_server.url)

    code, out, err = await run_command("dead", "list", *here, cwd=tmp_path)
    assert code == 0, err
    assert all(word in out for word in ("letter-1", "acme", "generation_failed"))
    code, out, _ = await run_command("dead", "list", "--tenant", "other", *here, cwd=tmp_path)
    assert (code, out.strip()) == (0, "No dead letters.")
    code, out, _ = await run_command("dead", "show", "letter-1", *here, cwd=tmp_path)
    assert json.loads(out)["request"] == {"prompt": "what kills"}

    code, out, err = await run_command("dead", "retry", "letter-1", *here, cwd=tmp_path)
    assert code == 0, err
    [again] = (await queue.claim("w", 1, budget_tokens=10**6, capacity_tokens=10**6)).jobs
    assert again.id == out.strip()
    assert JobRequest.from_json(again.body).prompt == "what kills"
    code, _, err = await run_command("dead", "retry", "letter-1", *here, cwd=tmp_path)
    assert code != 0
    assert "letter-1" in err
    await redis.aclose()
