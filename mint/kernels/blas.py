"""Keeps numpy's matrix products on one thread while their callers are spread over all cores.

A BLAS that starts its own threads for every small product makes them wait for each other: beside other work,
OpenBLAS's threads then burn more than ten times the time of the products.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController


@cache
def _libraries() -> ThreadpoolController:
    """The libraries of this process, that of scipy included: to find them takes milliseconds."""
    import scipy.linalg  # noqa: F401, it loads its own BLAS

    return ThreadpoolController()


@contextmanager
def single_threaded_products() -> Iterator[None]:
    """Products use one thread; libraries without such a setting, as Accelerate, go on.

    The setting is the process's. The first thread that asks has it until it leaves; others change nothing meanwhile.
    """
    with _libraries().limit(limits=1, user_api="blas"):
        yield
