"""Detects an engine that hangs: a load or a turn that takes far longer than expected."""

import asyncio
from collections import deque
from collections.abc import Callable

from worker.engine_thread import EngineThread

# A turn may take so many times the slowest of late, once there are enough to learn from.
SLACK = 20
LEARN_FROM_TURNS = 50
RECENT_TURNS = 500
# In units of the limit: what loading may take, and a turn before enough were seen.
LOAD_LIMITS = 60
FIRST_TURN_LIMITS = 10
# The same for reading one token of a prompt, until it is seen how long that takes.
LIMITS_A_TOKEN = 1 / 150
# Shorter prompts tell little of what one token takes.
LEARN_FROM_TOKENS = 16


class EngineHungError(Exception):
    """The engine's thread does not return, so the process must end without it."""


class TurnTimes:
    """How long turns took, and how long the next one may take. Pure. Never less than ``limit_s``."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._recent_s: deque[float] = deque(maxlen=RECENT_TURNS)
        self._token_s: deque[float] = deque(maxlen=RECENT_TURNS)

    def ended(self, turn_s: float, prompt_tokens: int) -> None:
        """Record a finished turn, which read ``prompt_tokens``."""
        self._recent_s.append(turn_s)
        if prompt_tokens >= LEARN_FROM_TOKENS:
            self._token_s.append(turn_s / prompt_tokens)

    def turn_limit_s(self, prompt_tokens: int) -> float:
        """The limit of a turn that may have to read so many prompt tokens."""
        turn_s = self._limit_s * FIRST_TURN_LIMITS
        if len(self._recent_s) >= LEARN_FROM_TURNS:
            turn_s = max(self._limit_s, SLACK * max(self._recent_s))
        token_s = self._limit_s * LIMITS_A_TOKEN
        if self._token_s:
            # The least is the nearest to the truth: a turn does more than to read a prompt.
            token_s = SLACK * min(self._token_s)
        return turn_s + token_s * prompt_tokens

    @property
    def load_limit_s(self) -> float:
        return self._limit_s * LOAD_LIMITS


class Watchdog:
    """Run it as a task; it ends by EngineHungError alone.

    ``prompt_tokens`` is asked how many tokens the turn under way may have to read. Time counts while
    this process runs: one that was stopped for a while has not waited for its engine.
    """

    def __init__(
        self,
        engine: EngineThread,
        times: TurnTimes,
        prompt_tokens: Callable[[], int],
        tick_s: float,
    ) -> None:
        self._engine = engine
        self._times = times
        self._prompt_tokens = prompt_tokens
        self._tick_s = tick_s

    async def run(self) -> None:
        watched, age_s = None, 0.0
        while True:
            await asyncio.sleep(self._tick_s)
            call = self._engine.call
            age_s = age_s + self._tick_s if call is watched else 0.0
            watched = call
            if call is not None and age_s > self._limit_s(loading=call.loading):
                what = "loading" if call.loading else "one turn"
                raise EngineHungError(f"{what} has taken {age_s:.1f} s and does not come back")

    def _limit_s(self, *, loading: bool) -> float:
        if loading:
            return self._times.load_limit_s
        return self._times.turn_limit_s(self._prompt_tokens())
