"""Keys and values of the running rows in pages, each over all layers.

Rows that begin with the same tokens share their full pages, also with rows that have ended (`PrefixCache`).
"""

from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from worker.engines.paging.prefix_cache import PageKeys, PrefixCache
from worker.engines.scheduling.row import Row

# The size of a page where no kernel asks for another.
PAGE_TOKENS = 64


class PagePool(Protocol):
    """A backend's pages, by number. The memory is the backend's."""

    def copy(self, source: int, target: int) -> None: ...

    def zero(self, page: int) -> None: ...


Pool = TypeVar("Pool", bound=PagePool)


class PageTable:
    """One row's pages, in the order of its tokens; ``numbers`` has room for all it may come to.

    Of the ``used`` pages the first ``offered`` are known to the prefix cache. So many ``given_tokens`` did
    not have to be read.
    """

    def __init__(self, row: Row, page_tokens: int) -> None:
        most = pages_for(row.most_tokens, page_tokens)
        self.numbers: npt.NDArray[np.int32] = np.zeros(most, dtype=np.int32)
        self.used = 0
        self.offered = 0
        self.given_tokens = 0
        self.keys = PageKeys(row, page_tokens)
        self._page_tokens = page_tokens
        self.address = self.numbers.ctypes.data

    @property
    def borrowed(self) -> int:
        """The first full pages, which were read by other rows."""
        return self.given_tokens // self._page_tokens

    @property
    def pages(self) -> list[int]:
        pages: list[int] = self.numbers[: self.used].tolist()
        return pages


class PagedCache(Generic[Pool]):
    """Owns the pool of pages, which ``make_pool`` makes for a number of them, and which row has which.

    Rows that keep to their reservations, ``kv_tokens`` in all and ``slots`` in number, always find
    a page, and low pages go first. Pages of up to ``prefix_cache_tokens`` that no row has are kept for rows
    to come; 0 shares nothing.
    """

    def __init__(
        self,
        make_pool: Callable[[int], Pool],
        *,
        kv_tokens: int,
        slots: int,
        prefix_tokens: int = 0,
        prefix_cache_tokens: int = 0,
        page_tokens: int = PAGE_TOKENS,
    ) -> None:
        num_pages = kv_tokens // page_tokens + slots + pages_for(prefix_tokens, page_tokens)
        self.page_tokens = page_tokens
        self.pool = make_pool(num_pages)
        self._make_pool = make_pool
        self._pages = PrefixCache(num_pages, most_idle=prefix_cache_tokens // page_tokens)
        self._shares = prefix_cache_tokens > 0
        self._tables: dict[str, PageTable] = {}
        self._prefix: list[int] = []
        self._prefix_pages: list[int] = []
        self.rows: list[Row] = []

    @property
    def allocated_tokens(self) -> int:
        return (self._pages.num_used - len(self._prefix_pages)) * self.page_tokens

    @property
    def shared_tokens(self) -> int:
        return self._pages.num_shared * self.page_tokens

    def keep_prefix(self, row: Row) -> None:
        """Take over this row's pages, all of its tokens read: rows that begin alike share them."""
        self.offer([row])
        table = self._tables.pop(row.id)
        self.rows.remove(row)
        self._prefix, self._prefix_pages = list(row.prompt_token_ids), table.pages

    def table_of(self, row: Row) -> PageTable:
        return self._tables[row.id]

    def allocate(self, rows: list[Row]) -> None:
        """Give each row pages for its tokens; all of them or, out of memory, none."""
        try:
            for row in rows:
                self._tables[row.id] = table = PageTable(row, self.page_tokens)
                self.rows.append(row)
                self._borrow_prefix(row, table)
                self.reach(row, row.num_tokens)
        except MemoryError:
            for row in rows:
                self.free(row)
            raise

    def allocate_behind(self, source: Row, row: Row) -> None:
        """Have the first page of another row in every place of what this row counts as read, a whole number
        of pages, and own ones behind."""
        self._tables[row.id] = table = PageTable(row, self.page_tokens)
        self.rows.append(row)
        page = int(self._tables[source.id].numbers[0])
        for place in range(row.read_tokens // self.page_tokens):
            self._put(table, place, page)
        self.reach(row, row.num_tokens)

    def share(self, rows: Iterable[Row]) -> set[str]:
        """Let rows that are about to be read go on behind what others have read.

        Returns the ids of those that should wait: another of these rows reads the same tokens now.
        """
        if not self._shares:
            return set()
        waiting: set[str] = set()
        being_read: set[bytes] = set()
        for row in rows:
            table = self._tables[row.id]
            self._borrow(row, table)
            unread = table.keys.full_pages[row.read_tokens // self.page_tokens :]
            if unread and unread[0] in being_read:
                waiting.add(row.id)
            else:
                being_read.update(unread)
        return waiting

    def given_tokens(self, row: Row) -> int:
        """How many of the row's tokens it did not have to read."""
        return self._tables[row.id].given_tokens

    def offer(self, rows: Iterable[Row]) -> None:
        """These rows have been read further: others may share their full pages."""
        if not self._shares:
            return
        for row in rows:
            table = self._tables[row.id]
            full = row.read_tokens // self.page_tokens
            if table.offered < full:
                for place in range(table.offered, full):
                    self._pages.offer(int(table.numbers[place]), table.keys.full_pages[place])
                table.offered = full

    def copy(self, source: Row, row: Row) -> None:
        """Give the row what another has, which has the same tokens and has read them: its full pages to
        share, and a copy of the last, which each goes on to fill."""
        mine, theirs = self._tables[row.id], self._tables[source.id]
        full = row.num_tokens // self.page_tokens
        for place in range(full):
            self._put(mine, place, int(theirs.numbers[place]))
        if mine.used > full:
            self.pool.copy(int(theirs.numbers[full]), int(mine.numbers[full]))

    def make_room(self) -> None:
        """Give each row a place for its newest token."""
        for row in self.rows:
            self.reach(row, row.num_tokens)
            if self._shares and self._tables[row.id].offered < row.read_tokens // self.page_tokens:
                self.offer([row])

    def reach(self, row: Row, num_tokens: int) -> None:
        """Give the row places for so many tokens, at most those of its reservation."""
        table = self._tables[row.id]
        while table.used * self.page_tokens < num_tokens:
            table.numbers[table.used] = self._pages.take()
            table.used += 1

    def free(self, row: Row, *, scrub: bool = False) -> None:
        """Take the row's pages back; unknown rows are ignored.

        ``scrub`` when what is in them may not be finite: a masked NaN is still a NaN.
        """
        table = self._tables.pop(row.id, None)
        if table is None:
            return
        if scrub:
            self._pages.withdraw(table.pages)
        # The last first: of pages that are equally old, those that need others before them go earlier.
        for page in reversed(table.pages):
            if self._pages.release(page) and scrub:
                self.pool.zero(page)
        self.rows.remove(row)

    def trim(self) -> None:
        """Nothing can be freed: a page that has been written stays in the pool."""

    def clear(self) -> None:
        self.rows.clear()
        self._tables.clear()
        self._prefix, self._prefix_pages = [], []
        self._pages = PrefixCache(0, most_idle=0)
        self.pool = self._make_pool(0)

    def _borrow(self, row: Row, table: PageTable) -> None:
        """Share what is known of the row's tokens, if it has read nothing itself.

        It reads at least its last token: that one's logits are wanted.
        """
        if row.read_tokens > table.given_tokens:
            return
        most = (row.num_tokens - 1) // self.page_tokens
        found = self._pages.find(table.keys.full_pages[:most])
        if len(found) * self.page_tokens <= row.read_tokens:
            return
        for place in range(table.borrowed, len(found)):
            self._put(table, place, found[place])
        table.offered = len(found)
        row.read_tokens = table.given_tokens = len(found) * self.page_tokens

    def _borrow_prefix(self, row: Row, table: PageTable) -> None:
        """Share the prefix's full pages and copy its last, which the row goes on to fill."""
        size = len(self._prefix)
        if (
            size == 0
            or row.adapter is not None
            or row.prompt_token_ids[:size] != self._prefix
            or row.num_tokens == size
        ):
            return
        full = size // self.page_tokens
        for place in range(full):
            self._put(table, place, self._prefix_pages[place])
        table.offered = full
        row.read_tokens = table.given_tokens = size
        if size % self.page_tokens:
            self.reach(row, row.num_tokens)
            self.pool.copy(self._prefix_pages[full], int(table.numbers[full]))

    def _put(self, table: PageTable, place: int, page: int) -> None:
        """Have a page of another row in this place."""
        if place < table.used:
            self._pages.release(int(table.numbers[place]))
        else:
            table.used = place + 1
        self._pages.acquire(page)
        table.numbers[place] = page


def pages_for(num_tokens: int, page_tokens: int) -> int:
    return -(-num_tokens // page_tokens)
