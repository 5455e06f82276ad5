"""What rows have in common is counted once: more of them run, and there is a page for each that needs one."""

import random
from collections.abc import Sequence

import pytest

from millpond.models.tokenization import ByteTokenizer
from worker.engines.base import GenerationRequest, Sampling
from worker.engines.paging.pages import PAGE_TOKENS, PagedCache
from worker.engines.scheduling.row import Row
from worker.engines.scheduling.scheduler import Scheduler

PREFIX = [3 * i % 251 for i in range(600)]
SLOTS = 64


class Pool:
    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages

    def copy(self, source: int, target: int) -> None:
        pass

    def zero(self, page: int) -> None:
        pass


class Machine:
    """Steps as the engine does, without a model; a row's tokens follow from those before."""

    def __init__(self, kv_tokens: int, prefix_cache_tokens: int) -> None:
        self.cache = PagedCache(
            Pool, kv_tokens=kv_tokens, slots=SLOTS, prefix_cache_tokens=prefix_cache_tokens
        )
        self.scheduler = Scheduler(
            ByteTokenizer(),
            slots=SLOTS,
            kv_tokens=kv_tokens,
            context_tokens=kv_tokens,
            max_batched_tokens=256,
            shared_tokens=lambda: self.cache.shared_tokens,
        )
        self.most_running = 0
        self.num_preempted = 0

    def admit(self, requests: list[GenerationRequest]) -> None:
        """As many as there is room for, counted as if they shared nothing."""
        room = self.scheduler.capacity()
        slots, tokens = room.free_slots, room.free_tokens
        group = []
        while requests and slots and tokens >= requests[-1].expected_tokens:
            slots, tokens = slots - 1, tokens - requests[-1].expected_tokens
            group.append(requests.pop())
        assert self.scheduler.admit(group) == []

    def step(self) -> None:
        """A page that cannot be had raises MemoryError."""
        scheduler, cache = self.scheduler, self.cache
        ended = scheduler.take_ended()
        self._free(ended)
        if scheduler.begin_prefill():
            touched = self._read()
        else:
            self.num_preempted += len(scheduler.make_room(cache.free))
            cache.make_room()
            touched = list(scheduler.running)
            for row in touched:
                row.read_tokens = row.num_tokens
        self._check()
        for row in touched:
            row.append((row.all_token_ids[-1] * 7 + row.num_tokens) % 251)
        self.most_running = max(self.most_running, len(scheduler.running))
        self._free([row for row in touched if row.finish_reason is not None])
        scheduler.collect((*ended, *touched))

    def _read(self) -> list[Row]:
        prefill = self.scheduler.prefill
        assert prefill is not None
        if not prefill.begun:
            self.cache.allocate(prefill.rows)
        chunk = self.scheduler.next_chunk(self.cache.share(prefill.rows))
        ended = prefill.ended(chunk)
        self.cache.offer([row for row, _, _ in chunk.pieces])
        for source, *others in ended.values():
            for row in others:
                self.cache.copy(source, row)
        rows = [row for alike in ended.values() for row in alike]
        self.scheduler.start(rows)
        return rows

    def _free(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.cache.free(row)
        if rows:
            self.scheduler.retire()

    def _check(self) -> None:
        budget = self.scheduler._budget
        reserved = sum(budget.of(row.id) for row in self.cache.rows)
        assert reserved - self.cache.shared_tokens <= budget.kv_tokens
        in_use = {page for row in self.cache.rows for page in self.cache.table_of(row).pages}
        assert len(in_use) <= self.cache.pool.num_pages
        assert self.cache.allocated_tokens == len(in_use) * PAGE_TOKENS


def request(row_id: str, prompt: list[int], output: int, predicted: int) -> GenerationRequest:
    sampling = Sampling(max_tokens=output, seed=0, ignore_eos=True)
    return GenerationRequest(row_id, prompt, sampling, predicted_tokens=predicted)


@pytest.mark.parametrize(("prefix_cache_tokens", "at_once"), [(0, 6), (32_768, 35)])
def test_more_rows_run_at_once_behind_a_common_prefix(
    prefix_cache_tokens: int, at_once: int
) -> None:
    """Each has 600 tokens in common with the others, 20 of its own and an output of 40; there is room for
    4,096. A row is taken in when all of it would fit."""
    machine = Machine(4096, prefix_cache_tokens)
    waiting = [request(f"{i}", [*PREFIX, *[i] * 20], 40, 40) for i in range(200)]
    while waiting or machine.scheduler.num_rows:
        machine.admit(waiting)
        machine.step()
    assert machine.most_running == at_once
    assert machine.cache.allocated_tokens == machine.cache.shared_tokens == 0


@pytest.mark.parametrize("seed", range(6))
def test_a_page_is_there_for_each_row_whatever_is_shared_preempted_and_cancelled(seed: int) -> None:
    rng = random.Random(seed)
    machine = Machine(rng.choice([1500, 3000]), rng.choice([256, 32_768]))
    waiting = []
    for i in range(60):
        common = PREFIX[: rng.choice([0, 64, 100, 600])]
        own = [rng.randrange(251) for _ in range(rng.choice([1, 30, 200]))]
        prompts = [common + own] * rng.choice([1, 1, 3])
        output = rng.randrange(1, 300)
        waiting += [
            request(f"{i}-{n}", prompt, output, rng.randrange(output + 1))
            for n, prompt in enumerate(prompts)
        ]
    steps = 0
    while waiting or machine.scheduler.num_rows:
        machine.admit(waiting)
        machine.step()
        if rng.random() < 0.02 and machine.scheduler.running:
            machine.scheduler.cancel([rng.choice(machine.scheduler.running).id])
        steps += 1
        assert steps < 50_000
    assert machine.cache.allocated_tokens == machine.cache.shared_tokens == 0
    assert machine.scheduler.capacity().free_tokens == machine.scheduler.row_limit_tokens
    assert machine.num_preempted
