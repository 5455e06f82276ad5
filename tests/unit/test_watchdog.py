"""How long a load and a turn may take, and whose time counts."""

import asyncio
import threading

import pytest

from tests.contract.jobs import until
from worker.engine_thread import EngineThread
from worker.engines.base import EngineNotReadyError
from worker.watchdog import LEARN_FROM_TURNS, EngineHungError, TurnTimes, Watchdog


def times(turn_s: float, turns: int = LEARN_FROM_TURNS, tokens: int = 0) -> TurnTimes:
    made = TurnTimes(30.0)
    for _ in range(turns):
        made.ended(turn_s, tokens)
    return made


def test_the_first_turns_and_a_load_have_long() -> None:
    assert times(0.1, 0).turn_limit_s(0) == 300
    assert times(0.1, 0).turn_limit_s(1_000) == 300 + 200
    assert times(0.1, LEARN_FROM_TURNS - 1).turn_limit_s(0) == 300
    assert times(0.1, 0).load_limit_s == 1800


def test_the_limit_is_learnt_from_the_slowest_turn_and_has_a_floor() -> None:
    assert times(0.1).turn_limit_s(0) == 30
    assert times(4.0).turn_limit_s(0) == 80


def test_what_prompts_take_is_learnt_from_those_that_were_read() -> None:
    assert times(0.1).turn_limit_s(4_000) == 30 + 800, "none was read yet"
    assert times(0.1, tokens=15).turn_limit_s(4_000) == 30 + 800, "too short to tell"
    assert times(0.1, tokens=1_000).turn_limit_s(4_000) == pytest.approx(30 + 20 * 0.4)


async def test_a_call_that_does_not_come_back_is_noticed_and_others_are_not() -> None:
    come_back = threading.Event()

    def load() -> None:
        come_back.wait(10)
        raise EngineNotReadyError("quick to fail")

    engine = EngineThread(load)  # type: ignore[arg-type]
    come_back.set()
    dog = asyncio.create_task(Watchdog(engine, TurnTimes(0.001), lambda: 0, 0.005).run())
    for _ in range(10):
        with pytest.raises(EngineNotReadyError):
            await engine.start()
        await asyncio.sleep(0.01)
    assert not dog.done()

    come_back.clear()
    loading = asyncio.create_task(engine.start())
    await until(lambda: asyncio.sleep(0, dog.done()))
    come_back.set()
    with pytest.raises(EngineHungError, match="loading has taken"):
        await dog
    with pytest.raises(EngineNotReadyError):
        await loading
    assert await engine.close(5)
