"""Keys and values of the running rows in pages of 64 tokens, each over all layers."""

import numpy as np
import numpy.typing as npt

from worker.engines.scheduling.row import Row

PAGE_TOKENS = 64


class PageTable:
    """One row's pages, in the order of its tokens; ``numbers`` has room for all it may come to.

    The first ``borrowed`` of the ``used`` pages belong to the shared prefix.
    """

    def __init__(self, most_tokens: int) -> None:
        self.numbers: npt.NDArray[np.int32] = np.zeros(pages_for(most_tokens), dtype=np.int32)
        self.used = 0
        self.borrowed = 0
        self.address = self.numbers.ctypes.data

    @property
    def owned(self) -> list[int]:
        pages: list[int] = self.numbers[self.borrowed : self.used].tolist()
        return pages


class PagedCache:
    """Owns the pool of pages and which row has which.

    Rows that keep to their reservations, ``kv_tokens`` in all and ``slots`` in number, always find
    a page. The system gives memory to a page when it is first written, and low pages go first.
    """

    def __init__(
        self, page_bytes: int, *, kv_tokens: int, slots: int, prefix_tokens: int = 0
    ) -> None:
        num_pages = kv_tokens // PAGE_TOKENS + slots + pages_for(prefix_tokens)
        self._pool: npt.NDArray[np.uint8] = np.zeros((num_pages, page_bytes), dtype=np.uint8)
        self.address = self._pool.ctypes.data
        self._free = list(range(num_pages - 1, -1, -1))
        self._tables: dict[str, PageTable] = {}
        self._prefix: list[int] = []
        self._prefix_pages: list[int] = []
        self.rows: list[Row] = []

    @property
    def allocated_tokens(self) -> int:
        return sum(len(t.owned) for t in self._tables.values()) * PAGE_TOKENS

    def keep_prefix(self, row: Row) -> None:
        """Take over this row's pages, all of its tokens read: rows that begin alike share them."""
        table = self._tables.pop(row.id)
        self.rows.remove(row)
        self._prefix, self._prefix_pages = list(row.prompt_token_ids), table.owned

    def table_of(self, row: Row) -> PageTable:
        return self._tables[row.id]

    def allocate(self, rows: list[Row]) -> None:
        """Give each row pages for its tokens; all of them or, out of memory, none."""
        try:
            for row in rows:
                self._tables[row.id] = table = PageTable(row.most_tokens)
                self.rows.append(row)
                self._borrow_prefix(row, table)
                self._extend(row)
        except MemoryError:
            for row in rows:
                self.free(row)
            raise

    def copy(self, source: Row, row: Row) -> None:
        """Fill the row's pages from those of another, which has the same tokens and has read them."""
        self._pool[self._tables[row.id].owned] = self._pool[self._tables[source.id].owned]

    def make_room(self) -> None:
        """Give each row a place for its newest token."""
        for row in self.rows:
            if row.num_tokens % PAGE_TOKENS == 1:
                self._extend(row)

    def free(self, row: Row, *, scrub: bool = False) -> None:
        """Take the row's pages back; unknown rows are ignored.

        ``scrub`` when what is in them may not be finite: a masked NaN is still a NaN.
        """
        table = self._tables.pop(row.id, None)
        if table is None:
            return
        if scrub:
            self._pool[table.owned] = 0
        self._free.extend(reversed(table.owned))
        self.rows.remove(row)

    def trim(self) -> None:
        """Nothing can be freed: a page that has been written stays in the pool."""

    def clear(self) -> None:
        self.rows.clear()
        self._tables.clear()
        self._prefix, self._prefix_pages = [], []
        self._pool = np.zeros((0, 0), dtype=np.uint8)

    def _borrow_prefix(self, row: Row, table: PageTable) -> None:
        """Share the prefix's full pages and copy its last, which the row goes on to fill: so much is
        read already.

        The row reads at least its last token itself: that one's logits are wanted.
        """
        size = len(self._prefix)
        if size == 0 or row.prompt_token_ids[:size] != self._prefix or row.num_tokens == size:
            return
        full = size // PAGE_TOKENS
        table.numbers[:full] = self._prefix_pages[:full]
        table.used = table.borrowed = full
        row.read_tokens = size
        if size % PAGE_TOKENS:
            page = self._free.pop()
            self._pool[page] = self._pool[self._prefix_pages[full]]
            table.numbers[full] = page
            table.used += 1

    def _extend(self, row: Row) -> None:
        table = self._tables[row.id]
        while table.used * PAGE_TOKENS < row.num_tokens:
            table.numbers[table.used] = self._free.pop()
            table.used += 1


def pages_for(num_tokens: int) -> int:
    return -(-num_tokens // PAGE_TOKENS)
