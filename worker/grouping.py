"""Length-sorted groups: rows of like length are prefilled together. Pure.

A group of n rows is padded to its longest, so it costs n x longest tokens. Sorting first keeps what
is padded small; the budget bounds the memory and the time of one prefill.
"""

from collections.abc import Sequence


def cut_groups(lengths: Sequence[int], padded_budget_tokens: int, max_rows: int) -> list[list[int]]:
    """Cut rows into groups under a padded-token budget.

    ``lengths[i]`` is row i's prompt in tokens. Returns groups of row indices, shortest rows first, so
    that those start soonest. Each index appears once; a row over the budget is a group of its own.
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        # Ascending order: this row would be the longest of the group.
        last = groups[-1] if groups else []
        fits = (len(last) + 1) * lengths[row] <= padded_budget_tokens and len(last) < max_rows
        if last and fits:
            last.append(row)
        else:
            groups.append([row])
    return groups
