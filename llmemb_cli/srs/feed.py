"""Batches in the order of their steps; for a GPU they are made while it works on the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")


def in_order(make: Callable[[int], Made], first: int, last: int, *, ahead: bool) -> Iterator[Made]:
    """`make(first)` to `make(last - 1)`.

    Args:
        make: makes the batch of a step; its random numbers depend on the step alone.
        ahead: make the next batch in a thread meanwhile. On a CPU that would take time from the step itself.
    """
    if not ahead:
        yield from map(make, range(first, last))
        return
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        coming = pool.submit(make, first) if first < last else None
        for number in range(first, last):
            assert coming is not None
            ready = coming.result()
            coming = pool.submit(make, number + 1) if number + 1 < last else None
            yield ready
