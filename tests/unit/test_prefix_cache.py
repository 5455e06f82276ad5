"""Who has which page, and which pages are kept for rows to come."""

import random
from collections import Counter

from millpond.models.tokenization import ByteTokenizer
from worker.engines.base import GenerationRequest, Sampling
from worker.engines.paging.prefix_cache import PageKeys, PrefixCache
from worker.engines.scheduling.row import Row


def row(tokens: list[int], **options: str) -> Row:
    request = GenerationRequest("r", tokens, Sampling(max_tokens=90, seed=0), **options)
    return Row(request, ByteTokenizer())


def keys(tokens: list[int], **options: str) -> list[bytes]:
    return list(PageKeys(row(tokens, **options), 4).full_pages)


def test_a_key_stands_for_the_page_and_all_before_it() -> None:
    tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    first, second = keys(tokens)
    assert keys(tokens[:7]) == [first]
    assert keys([*tokens[:7], 0]) == [first, keys([*tokens[:7], 0])[1]]
    assert second not in keys([0, *tokens[1:8]])
    for options in ({"cache_salt": "a"}, {"cache_salt": "b"}, {"adapter": "a"}):
        assert not {first, second} & set(keys(tokens, **options))


def test_keys_grow_with_the_row() -> None:
    growing = row([1, 2, 3])
    found = PageKeys(growing, 4)
    assert found.full_pages == []
    for token in range(4, 9):
        growing.append(token)
    assert found.full_pages == keys([1, 2, 3, 4, 5, 6, 7, 8])


def test_idle_pages_are_kept_the_latest_ones() -> None:
    cache = PrefixCache(4, most_idle=2)
    pages = [cache.take() for _ in range(3)]
    for page, key in zip(pages, (b"a", b"b", b"c"), strict=True):
        cache.offer(page, key)
    assert [cache.release(page) for page in pages] == [False] * 3
    assert cache.find([b"a"]) == []
    assert cache.find([b"b", b"c", b"d"]) == pages[1:]
    assert cache.num_used == 0


def test_an_idle_page_is_taken_when_none_is_free_and_is_known_no_more() -> None:
    cache = PrefixCache(2, most_idle=2)
    one, other = cache.take(), cache.take()
    cache.offer(one, b"one")
    cache.offer(other, b"other")
    cache.release(other)
    cache.release(one)
    assert cache.take() == other
    assert cache.find([b"other"]) == []
    assert cache.find([b"one"]) == [one]


def test_what_is_withdrawn_is_free_once_nobody_has_it() -> None:
    cache = PrefixCache(2, most_idle=2)
    page = cache.take()
    cache.offer(page, b"k")
    cache.acquire(page)
    cache.withdraw([page])
    assert cache.find([b"k"]) == []
    assert not cache.release(page)
    assert cache.release(page)


def test_no_page_is_lost_or_given_twice() -> None:
    rng = random.Random(3)
    cache = PrefixCache(12, most_idle=4)
    held: Counter[int] = Counter()
    for step in range(5_000):
        busy = [page for page, count in held.items() if count]
        match rng.randrange(5):
            case 0 if len(busy) < 12:
                page = cache.take()
                assert not held[page]
                held[page] = 1
            case 1 if busy:
                page = rng.choice(busy)
                held[page] -= 1
                cache.release(page)
            case 2 if busy:
                cache.offer(rng.choice(busy), f"{step % 30}".encode())
            case 3:
                for page in cache.find([f"{rng.randrange(30)}".encode()]):
                    cache.acquire(page)
                    held[page] += 1
            case 4 if busy and rng.random() < 0.1:
                cache.withdraw([rng.choice(busy)])
        assert cache.num_used == sum(count > 0 for count in held.values())
        assert cache.num_shared == sum(count - 1 for count in held.values() if count)
