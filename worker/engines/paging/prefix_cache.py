"""Which pages are free, which rows share, and which are kept because a row to come may begin with them. Pure.

A page is known by the tokens in it and all those before it, as in vLLM's automatic prefix caching.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from worker.engines.scheduling.row import Row

_KEY_BYTES = 16


class PageKeys:
    """The keys of a row's full pages: digests of their tokens, each with the key before it.

    Rows with other adapters or another ``cache_salt`` have other keys.
    """

    def __init__(self, row: Row, page_tokens: int) -> None:
        self._row = row
        self._page_tokens = page_tokens
        self._root = repr((row.adapter, row.cache_salt)).encode()
        self._keys: list[bytes] = []

    @property
    def full_pages(self) -> list[bytes]:
        """Those of all full pages that the row has now."""
        size = self._page_tokens
        if len(self._keys) < self._row.num_tokens // size:
            token_ids = self._row.all_token_ids
            for first in range(len(self._keys) * size, len(token_ids) - size + 1, size):
                before = self._keys[-1] if self._keys else self._root
                tokens = array("i", token_ids[first : first + size]).tobytes()
                self._keys.append(hashlib.blake2b(before + tokens, digest_size=_KEY_BYTES).digest())
        return self._keys


class PrefixCache:
    """Owns who has which page. At most ``most_idle`` pages that no row has are kept, the latest.

    ``num_shared`` counts, of each page, all rows that have it but one.
    """

    def __init__(self, num_pages: int, *, most_idle: int) -> None:
        self._most_idle = most_idle
        self._free = list(range(num_pages - 1, -1, -1))
        self._holders = [0] * num_pages
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self.num_shared = 0

    @property
    def num_used(self) -> int:
        """Pages that rows have."""
        return len(self._holders) - len(self._free) - len(self._idle)

    def take(self) -> int:
        """A page that no other row has: a free one, else the one that has been idle for longest.

        Raises MemoryError if rows have them all.
        """
        if not self._free and not self._idle:
            raise MemoryError("no page of the KV cache is free")
        page = self._free.pop() if self._free else self._forget_oldest()
        self._holders[page] = 1
        return page

    def acquire(self, page: int) -> None:
        """Share a page that others have, or had."""
        self._idle.pop(page, None)
        self.num_shared += self._holders[page] > 0
        self._holders[page] += 1

    def release(self, page: int) -> bool:
        """Whether it is free now: no row has it, and it is not kept."""
        self._holders[page] -= 1
        if self._holders[page]:
            self.num_shared -= 1
            return False
        if page not in self._key_of:
            self._free.append(page)
            return True
        self._idle[page] = None
        while len(self._idle) > self._most_idle:
            self._free.append(self._forget_oldest())
        return False

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The pages of these keys, up to the first that is not known."""
        pages = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def offer(self, page: int, key: bytes) -> None:
        """Make the page known, unless it is, or another with the same content."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def withdraw(self, pages: Sequence[int]) -> None:
        """Share these pages with no further row."""
        for page in pages:
            key = self._key_of.pop(page, None)
            if key is not None:
                del self._page_of[key]

    def _forget_oldest(self) -> int:
        page, _ = self._idle.popitem(last=False)
        self.withdraw([page])
        return page
