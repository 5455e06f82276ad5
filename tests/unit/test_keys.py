"""The names of a queue's keys, and the ids that go into them."""

import re
from pathlib import Path

import pytest

from millpond.errors import InvalidRequestError
from millpond.messages import JOB_ID_PATTERN as JOB_ID
from millpond.messages import Priority
from millpond.queue.keys import QUEUE_KEYS, Keys, queue_of_model


def test_every_key_carries_the_hash_tag() -> None:
    keys = Keys("q")
    assert keys.job("a") == "mp:{q}:job:a"
    for name in QUEUE_KEYS:
        assert keys[name].startswith("mp:{q}:")
    for of_job in (keys.job, keys.body, keys.result, keys.events):
        assert of_job("a").startswith("mp:{q}:")
        assert of_job("a").endswith(":a")


def test_named_attributes_are_the_same_keys() -> None:
    keys = Keys("q")
    for name in ("counts", "wake", "workers", "dead", "channel"):
        assert getattr(keys, name) == keys[name]
    assert keys.lane(Priority.BATCH, "ann") == keys["lane"] + "batch:ann" == "mp:{q}:lane:batch:ann"


def test_no_job_key_can_be_taken_for_another() -> None:
    """Ids may hold colons; a prefix that began another would let two keys meet."""
    prefixes = [name for name in QUEUE_KEYS.values() if name.endswith(":")]
    for one in QUEUE_KEYS.values():
        for prefix in prefixes:
            assert one == prefix or not one.startswith(prefix)


@pytest.mark.parametrize("name", ["", "a b", "a{b", "a}b", "{", "-a", ".a", "ä", "a\n", "a" * 33])
def test_names_that_cannot_be_a_hash_tag_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Keys(name)
    assert caught.value.field == "queue"


@pytest.mark.parametrize("id", ["a", "A9", "a" * 64, "a:b.c_d-e", "0"])
def test_good_ids(id: str) -> None:
    assert JOB_ID.fullmatch(id)


@pytest.mark.parametrize("id", ["", ":a", "-a", "a/b", "a b", "a\n", 'a"', "a\\", "ä", "a" * 65])
def test_bad_ids(id: str) -> None:
    assert not JOB_ID.fullmatch(id)


def test_nothing_else_spells_a_key() -> None:
    root = Path(__file__).parents[2]
    sources = [
        path
        for part in ("millpond", "api", "worker", "background")
        for path in root.glob(f"{part}/**/*.py")
    ]
    spelled = re.compile(r"""["']mp:""")
    found = {path.name for path in sources if spelled.search(path.read_text())}
    assert found == {"keys.py"}


@pytest.mark.parametrize(
    ("model", "queue"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("owner/Model.v2", "Model.v2"),
        ("/models/my model/", "my-model"),
        ("models/file.gguf", "file.gguf"),
        ("x" * 40, "x" * 32),
        ("é", "model"),
    ],
)
def test_a_model_of_several_has_a_queue_that_is_named_after_it(model: str, queue: str) -> None:
    assert queue_of_model(model) == queue
    assert Keys(queue_of_model(model))
