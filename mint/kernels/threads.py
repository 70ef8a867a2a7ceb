"""The threads that compiled kernels run on: one pool for the life of the process, since starting threads costs more
than measuring a small matrix."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(work: Callable[[Item], Result], items: Sequence[Item], threads: int | None) -> list[Result]:
    """The results of `work` for all items, in their order; on `threads` threads, by default one for every core."""
    threads = threads or os.cpu_count() or 1
    if min(threads, len(items)) <= 1:
        return [work(item) for item in items]
    return list(_pool(threads).map(work, items))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="mint-kernel")
