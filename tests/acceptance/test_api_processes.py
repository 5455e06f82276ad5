"""Several API processes on one port."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import psutil

from tests.acceptance.conftest import Up, until

Start = Callable[..., Awaitable[Up]]
SEVERAL = ("--engine", "simulated", "--port", "0", "--api-processes", "2")


def processes(stack: Up) -> list[psutil.Process]:
    [parent] = stack.children_called("api")
    return parent.children()


async def test_two_processes_serve_one_port_and_come_back(up: Start) -> None:
    stack = await up(*SEVERAL)
    await until(lambda: len(processes(stack)) == 2, 10, "both run")

    async def submit(number: int) -> int:
        # A connection each: the kernel chooses the process.
        async with httpx.AsyncClient(base_url=stack.about.api_url) as http:
            body = {"prompt": f"question {number}", "max_tokens": 4}
            answer = await http.post("/v1/jobs", json=body)
            result = await http.get(answer.headers["Location"], params={"wait": 20})
            return int(result.json()["status"] == "succeeded")

    assert sum(await asyncio.gather(*(submit(i) for i in range(40)))) == 40
    async with httpx.AsyncClient(base_url=stack.about.api_url) as http:
        text = (await http.get("/metrics")).text
    [counted] = [line for line in text.splitlines() if 'api_jobs_total{outcome="accepted"}' in line]
    assert float(counted.split()[-1]) == 40, "the counters are of both"
    assert "millpond_redis_up 1.0" in text

    victim = processes(stack)[0]
    victim.kill()
    await until(
        lambda: len(processes(stack)) == 2 and victim not in processes(stack), 10, "it is back"
    )
    assert sum(await asyncio.gather(*(submit(i) for i in range(40, 50)))) == 10
    own = processes(stack)
    assert await stack.stop() == 0
    assert not any(process.is_running() for process in own)


async def test_a_port_that_is_taken_is_told(up: Start) -> None:
    first = await up(*SEVERAL)
    port = first.about.api_url.rpartition(":")[2]
    second = await up(
        "--engine", "simulated", "--port", port, "--api-processes", "2",
        data=first.data.parent / "other", ready=False,
    )  # fmt: skip
    assert await asyncio.wait_for(second.process.wait(), 20) != 0
    assert f"port {port}" in second.printed
