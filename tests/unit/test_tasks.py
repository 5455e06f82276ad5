import asyncio

import pytest

from millpond.tasks import end_tasks, keep_running


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


async def test_a_task_that_fails_is_logged_and_runs_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs < 4:
            raise ValueError("a secret") if runs < 3 else KeyError("another")

    await asyncio.wait_for(keep_running("sweeper", work, again_s=0.0), 5)
    assert runs == 4
    told = capsys.readouterr().out
    assert told.count("task_failed") == 2, "a failure that repeats itself is not logged each time"
    assert "sweeper" in told
    assert "ValueError" in told
    assert "secret" not in told


async def test_a_task_that_is_kept_running_can_be_ended() -> None:
    task = asyncio.create_task(keep_running("waits", asyncio.Event().wait, again_s=0.0))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await asyncio.wait_for(end_tasks(task), 5)
    assert task.cancelled()
