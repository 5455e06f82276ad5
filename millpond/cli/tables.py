"""Tables that fit the terminal: long cells fold, and what one may want to copy is never cut."""

import datetime
from collections.abc import Collection

from rich import box
from rich.table import Table


def folding_table(*headings: str, whole: Collection[str]) -> Table:
    """A table whose columns fold, but for those in ``whole``, which stand on one line."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for heading in headings:
        table.add_column(
            heading,
            no_wrap=heading in whole,
            overflow="ignore" if heading in whole else "fold",
            min_width=len(heading),
        )
    return table


def utc_time(ms: int) -> str:
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
