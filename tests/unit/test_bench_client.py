"""The client of ``millpond bench`` against a server whose pace and failures are known."""

import itertools

import pytest

from millpond.bench.driver import Bounds, Driven, drive
from millpond.bench.figures import figures
from millpond.bench.lengths import Fixed
from millpond.bench.loads import ClosedLoop, Load, OpenLoop
from millpond.bench.places import Server
from millpond.bench.run import BenchRun, Shown
from millpond.bench.timed import BenchError
from millpond.bench.workloads import Asking, MadeUp, Wording
from millpond.openai.requests import CHAT
from tests.upstream import NORMAL, Behaviour, Upstream

ASKING = Asking(CHAT, 0.0, ignore_eos=True)
TOKENS = 11


def workload(wording: Wording) -> MadeUp:
    return MadeUp(Fixed(200), Fixed(TOKENS), ASKING, wording, seed=0)


def bench(server: Upstream, loads: list[Load], *, requests: int = 8, rounds: int = 1) -> BenchRun:
    place = Server("upstream", server.url)
    bounds = Bounds(requests, seconds=30.0)
    return BenchRun([place], loads, ASKING, workload, bounds, 0, rounds, Shown())


async def test_times_and_tokens_are_the_servers() -> None:
    with Upstream(token_delay_s=0.01) as server:
        run = bench(server, [ClosedLoop(concurrency=2)], rounds=2)
        await run.run()
    assert [one.round for one in run.runs] == [1, 2]
    found = figures(run.runs, {})
    assert (found.requests, found.failed) == (16, 0)
    assert found.mean_output_tokens == TOKENS
    assert found.mean_prompt_tokens == pytest.approx(200, abs=3)
    tpot = found.latency_ms("tpot", 50)
    assert tpot is not None
    assert 10.0 <= tpot < 20.0
    prompts = [body["messages"][0]["content"] for body in server.bodies]
    # The probes are the same in each round, questions are asked once.
    assert len(set(prompts)) == len(prompts) - 2


async def test_a_closed_loop_never_has_more_open_than_clients() -> None:
    with Upstream(token_delay_s=0.002) as server:
        await bench(server, [ClosedLoop(concurrency=3)], requests=12).run()
        assert server.most_open == 3


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    with Upstream(token_delay_s=0.02) as server:
        run = bench(server, [OpenLoop(rate_per_s=1000.0, burst=4)], requests=12)
        await run.run()
        assert server.most_open == 12
    due = [request.sent_s for request in run.runs[0].requests]
    assert len(set(due)) == 3


async def test_failures_are_counted_and_end_nothing() -> None:
    with Upstream() as server:
        server.script.extend(
            [
                *(NORMAL, NORMAL),
                Behaviour(status=503, error="busy"),
                Behaviour(cut_after=3),
                Behaviour(junk_after=3),
                Behaviour(error_after=3),
                Behaviour(end_after=3),
            ]
        )
        run = bench(server, [ClosedLoop(concurrency=1)])
        await run.run()
    errors = [request.error for request in run.runs[0].requests]
    assert errors[5:] == [None] * 3
    assert errors[0] is not None
    assert errors[0].startswith("503: ")
    assert all(errors[:5])


async def test_a_load_ends_after_its_seconds() -> None:
    with Upstream(token_delay_s=0.005) as server:
        async with Server("upstream", server.url).opened() as opened:
            seen: list[Driven] = []
            driven = await drive(
                opened.client,
                ClosedLoop(concurrency=2),
                workload(Wording(tokens_per_word=5.0)),
                itertools.count(),
                Bounds(requests=10_000, seconds=0.3),
                seen.append,
            )
    assert 2 <= len(driven.done) < 100
    assert driven.running == 0
    assert seen[-1] is driven


async def test_what_is_no_server_is_told_before_anything_runs() -> None:
    with Upstream(api_key="secret") as server:
        with pytest.raises(BenchError, match="answers 401"):
            await bench(server, [ClosedLoop(concurrency=1)]).run()
        wrong = Server("upstream", server.url, model="other", api_key="secret")
        with pytest.raises(BenchError, match="not 'other'"):
            async with wrong.opened():
                pass
    with pytest.raises(BenchError, match="no OpenAI-compatible server answers there"):
        await bench(server, [ClosedLoop(concurrency=1)]).run()
