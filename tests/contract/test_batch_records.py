"""Turns of a batch, and what a process whose turn is over can no longer do."""

from dataclasses import replace

import pytest
from redis.asyncio import Redis

from background.batches.telling import tell_webhooks
from millpond.batches import batches as all_batches
from millpond.batches.batches import Batches
from millpond.batches.files import Files, new_file_id
from millpond.batches.records import (
    BatchProblem,
    BatchRecord,
    BatchStatus,
    NewBatch,
    Part,
    Turn,
    TurnOverError,
    is_done,
    new_batch_id,
)
from millpond.errors import BatchEndedError, FileInUseError, UnknownBatchError, UnknownFileError
from millpond.queue.keys import Keys
from millpond.webhooks.deliveries import Deliveries

ME = "acme"


@pytest.fixture
def files(redis: Redis) -> Files:
    return Files(redis, "test")


@pytest.fixture
def batches(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Batches:
    monkeypatch.setattr(all_batches, "LEASE_S", 30.0)
    return Batches(redis, "test")


async def upload(files: Files) -> str:
    id = new_file_id()
    await files.doom(id, in_s=60)
    await files.add(
        id,
        ME,
        filename="in.jsonl",
        object_name=id,
        num_bytes=10,
        ttl_s=3_600,
        max_tenant_bytes=100,
    )
    return id


def asking(input_file: str, tenant: str = ME) -> NewBatch:
    return NewBatch(
        tenant=tenant,
        endpoint="/v1/chat/completions",
        input_file=input_file,
        window="24h",
        window_s=86_400,
        metadata={"a": "b"},
        output_ttl_s=None,
        tenant_limit=7,
        tenant_bytes=None,
    )


async def create(batches: Batches, files: Files) -> BatchRecord:
    return await batches.create(new_batch_id(), asking(await upload(files)))


async def take(batches: Batches, id: str) -> Turn:
    record = await batches.find(id)
    assert record is not None
    turn = await batches.take(id, record.turn)
    assert turn is not None
    return turn


async def started(batches: Batches, files: Files) -> Turn:
    batch = await create(batches, files)
    turn = await take(batches, batch.id)
    status = await batches.start(
        turn, total=9, models=["m"], queues=["test"], objects=[("rows-0", 0), ("rows-1", 5)]
    )
    assert status is BatchStatus.IN_PROGRESS
    return turn


async def write(batches: Batches, turn: Turn, *places: int, object_name: str = "part") -> None:
    await batches.record_part(
        turn,
        places[0],
        output=Part(object_name, 10 * len(places), len(places)),
        errors=None,
        places=places,
        prompt_tokens=3,
        output_tokens=2,
    )


async def test_one_turn_at_a_time(batches: Batches, files: Files) -> None:
    batch = await create(batches, files)
    assert (batch.status, batch.turn, batch.tenant_limit) == (BatchStatus.VALIDATING, 0, 7)
    first = await batches.take(batch.id, 0)
    assert first is not None
    assert first.clean, "nothing came before it"
    assert await batches.take(batch.id, 0) is None, "a second job of the same step"
    assert await batches.take(batch.id, first.number) is None, "its lease has not ended"
    await batches.release(first, clean=False)
    second = await batches.take(batch.id, first.number)
    assert second is not None
    assert not second.clean
    with pytest.raises(TurnOverError):
        await batches.renew(first)
    with pytest.raises(TurnOverError):
        await batches.end(first, BatchStatus.FAILED, file_ttl_s=60)
    await batches.release(second, clean=True)
    third = await batches.take(batch.id, second.number)
    assert third is not None
    assert third.clean


async def test_what_is_written_and_that_it_is_done_are_told_at_once(
    batches: Batches, files: Files
) -> None:
    turn = await started(batches, files)
    await write(batches, turn, 0, 8, object_name="one")
    await batches.release(turn, clean=True)
    later = await take(batches, turn.batch)
    with pytest.raises(TurnOverError):
        await write(batches, turn, 3, object_name="late")
    await write(batches, later, 3, object_name="two")
    done = await batches.done(turn.batch)
    assert [place for place in range(20) if is_done(done, place)] == [0, 3, 8]
    batch = await batches.get(turn.batch, ME)
    assert (batch.completed, batch.failed, batch.prompt_tokens) == (3, 0, 6)
    assert batch.output_file is not None
    assert batch.error_file is None
    assert await files.parts(batch.output_file) == [("one", 20), ("two", 10)]
    output = await files.get(batch.output_file, ME)
    assert (output.growing, output.rows, output.bytes) == (True, 3, 30)
    with pytest.raises(FileInUseError):
        await files.remove(output.id, ME)
    listed = (await files.page(ME, after=None, limit=9, purpose="batch_output")).items
    assert listed == [output]


async def test_the_end_joins_the_files_and_dooms_what_they_were(
    batches: Batches, files: Files
) -> None:
    turn = await started(batches, files)
    await write(batches, turn, 0, object_name="one")
    await write(batches, turn, 1, object_name="two")
    await batches.close(turn, BatchStatus.COMPLETED)
    assert (await batches.get(turn.batch, ME)).status is BatchStatus.FINALIZING
    await batches.end(turn, BatchStatus.COMPLETED, file_ttl_s=3_600, output=Part("joined", 20, 0))
    batch = await batches.get(turn.batch, ME)
    assert batch.ended
    assert list(batch.at) == [
        BatchStatus.IN_PROGRESS,
        BatchStatus.FINALIZING,
        BatchStatus.COMPLETED,
    ]
    assert batch.output_file is not None
    assert await files.parts(batch.output_file) == [("joined", 20)]
    assert not (await files.get(batch.output_file, ME)).growing
    assert sorted(await files.sweep()) == ["one", "rows-0", "rows-1", "two"]
    await files.removed(["one", "rows-0", "rows-1", "two"])
    assert await files.sweep() == []
    assert await batches.unfinished() == []
    assert [id for id, _ in await batches.untold()] == [batch.id]
    assert await batches.take(batch.id, batch.turn) is None
    await files.remove(batch.output_file, ME)
    assert await files.sweep() == ["joined"]


async def test_webhooks_are_owed_once_when_a_batch_has_ended(
    redis: Redis, batches: Batches, files: Files
) -> None:
    """Whoever ended it may die before it has told anybody."""
    deliveries = Deliveries(redis, Keys("test"))
    url = "https://receiver.example/hook"
    new = replace(asking(await upload(files)), webhook_url=url)
    batch = await batches.create(new_batch_id(), new)
    await tell_webhooks(batches, deliveries)
    assert await deliveries.pending() == 0

    turn = await take(batches, batch.id)
    await batches.end(turn, BatchStatus.FAILED, file_ttl_s=3_600, problems=[BatchProblem("a", "b")])
    for _ in range(2):
        await tell_webhooks(batches, deliveries)

    [owed] = await deliveries.take(10)
    assert (owed.event, owed.url, owed.tenant) == ("batch.failed", url, ME)
    assert owed.data is not None
    assert (owed.subject, owed.data["id"], owed.data["status"]) == (batch.id, batch.id, "failed")
    assert await batches.untold() == []


async def test_a_cancel(batches: Batches, files: Files) -> None:
    batch = await create(batches, files)
    with pytest.raises(UnknownBatchError):
        await batches.cancel(batch.id, "other")
    assert (await batches.cancel(batch.id, ME)).status is BatchStatus.CANCELLING
    turn = await take(batches, batch.id)
    status = await batches.start(turn, total=1, models=[], queues=["test"], objects=[("rows", 0)])
    assert status is BatchStatus.CANCELLING, "its rows are not to run"
    assert await batches.rows(batch.id) == []
    await batches.close(turn, BatchStatus.CANCELLED)
    await batches.end(turn, BatchStatus.CANCELLED, file_ttl_s=60)
    with pytest.raises(BatchEndedError, match="it is cancelled"):
        await batches.cancel(batch.id, ME)


async def test_a_failed_batch_says_why(batches: Batches, files: Files) -> None:
    batch = await create(batches, files)
    turn = await take(batches, batch.id)
    problems = [BatchProblem("empty_file", "nothing", None, None), BatchProblem("x", "y", 3, "z")]
    await batches.end(turn, BatchStatus.FAILED, file_ttl_s=60, problems=problems)
    failed = await batches.get(batch.id, ME)
    assert failed.problems == problems
    assert BatchStatus.FAILED in failed.at


async def test_files_and_batches_of_others_are_not_there(batches: Batches, files: Files) -> None:
    batch = await create(batches, files)
    with pytest.raises(UnknownBatchError):
        await batches.get(batch.id, "other")
    with pytest.raises(UnknownFileError, match="input_file_id"):
        await batches.create(new_batch_id(), asking(batch.input_file, "other"))
    assert not (await batches.page("other", after=None, limit=5)).items


async def test_lists_in_pages(batches: Batches, files: Files) -> None:
    made = []
    for _ in range(5):
        batch = await create(batches, files)
        made.append(batch.id)
        await files.remove(batch.input_file, ME)
    first = await batches.page(ME, after=None, limit=3)
    second = await batches.page(ME, after=first.items[-1].id, limit=3)
    listed = [batch.id for batch in (*first.items, *second.items)]
    assert (first.has_more, second.has_more) == (True, False)
    assert sorted(listed) == sorted(made)
