"""Keeps numpy's matrix products on one thread while their callers are spread over all cores.

A BLAS that starts its own threads for every small product makes them wait for each other: beside other work,
OpenBLAS's threads then burn more than ten times the time of the products.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

from threadpoolctl import ThreadpoolController


@cache
def _libraries() -> ThreadpoolController:
    """The libraries of this process, that of scipy included: to find them takes milliseconds."""
    import scipy.linalg  # noqa: F401, it loads its own BLAS

    return ThreadpoolController()


class _Limit:
    """One thread for every product from the first caller's entry until the last caller leaves.

    Callers overlap in any order, so none of them can restore what it found: that may be another's limit.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._callers = 0
        self._limiter: Any = None

    def enter(self) -> None:
        with self._lock:
            if not self._callers:
                self._limiter = _libraries().limit(limits=1, user_api="blas")
            self._callers += 1

    def leave(self) -> None:
        with self._lock:
            self._callers -= 1
            if not self._callers:
                self._limiter.restore_original_limits()


_LIMIT = _Limit()


@contextmanager
def single_threaded_products() -> Iterator[None]:
    """Products use one thread; libraries without such a setting, as Accelerate, go on.

    The setting is the process's, and lasts until the last of all callers leaves.
    """
    _LIMIT.enter()
    try:
        yield
    finally:
        _LIMIT.leave()
