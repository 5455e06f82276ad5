import asyncio

import pytest

from millpond.tasks import end_tasks


async def test_a_task_that_loses_its_first_cancellation_ends_too() -> None:
    lost = 0

    async def deaf_once() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                lost += 1
                if lost > 1:
                    raise

    task = asyncio.create_task(deaf_once())
    await asyncio.sleep(0)
    await asyncio.wait_for(end_tasks(task, None), 5)
    assert task.cancelled()
    assert lost == 2


async def test_what_a_task_raises_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> None:
        raise ValueError("broken")

    tasks = [asyncio.create_task(broken()) for _ in range(2)]
    await end_tasks(*tasks)
    assert all(task.done() for task in tasks)
    del tasks
    assert not caplog.records
