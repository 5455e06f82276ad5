"""What a queued job takes of the server's memory."""

from redis.asyncio import Redis

from bench import rq_peer
from bench.measure import Figure, prompts
from bench.stage import Stage
from bench.submitting import CHUNK, submit_pipelined

JOBS = 20_000
PROMPT_BYTES = 512
MAX_BYTES = 1.3 * 1024


async def used(redis: Redis) -> int:
    """Bytes of the data set and its overhead, the buffers of the append-only file left out."""
    info = await redis.info("memory")
    return int(info["used_memory"]) - int(info["mem_aof_buffer"])


async def sum_of_keys(redis: Redis) -> int:
    """MEMORY USAGE of every key, each list and hash counted whole."""
    total = 0
    page: list[bytes] = []
    async for key in redis.scan_iter(count=1_000):
        page.append(key)
    for i in range(0, len(page), CHUNK):
        async with redis.pipeline(transaction=False) as pipe:
            for key in page[i : i + CHUNK]:
                pipe.memory_usage(key, samples=0)
            total += sum(await pipe.execute())
    return total


async def measure_memory(stage: Stage) -> list[Figure]:
    texts = prompts(JOBS, PROMPT_BYTES)
    await stage.clear()
    empty = await used(stage.redis)
    await submit_pipelined(stage.queue, texts)
    delta = (await used(stage.redis) - empty) / JOBS
    keys = await sum_of_keys(stage.redis) / JOBS
    await stage.clear()
    empty = await used(stage.redis)
    await stage.rq(rq_peer.enqueue_many, texts, CHUNK)
    peer = (await used(stage.redis) - empty) / JOBS
    worst = max(delta, keys)
    return [
        Figure(
            f"memory of a queued job, {PROMPT_BYTES}-byte prompt",
            f"{delta:,.0f} B used, {keys:,.0f} B by key",
            f"RQ {peer:,.0f} B used (compressed)",
            f"{worst / 1024:.2f} KB",
            f"≤ {MAX_BYTES / 1024:g} KB",
            worst <= MAX_BYTES,
        )
    ]
