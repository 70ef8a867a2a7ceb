"""Where jobs run. A verb gets an executor and does not know which.

The in-process executor is the default: no server, no other process. It evaluates one weight, starts to read the next
while this one is computed, and drops it; memory is bounded by the two largest neighbours, not by the model.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import mlx.core as mx

from mint.source import Source
from mint.units import Unit

T = TypeVar("T")
Job = Callable[[Unit, mx.array], T]
CACHE_BYTES = 64 << 20  # freed buffers that MLX may hoard


class Executor(Protocol):
    """Do `job` for every unit of `source`; yield each unit with its result as it finishes, in any order."""

    def __call__(self, source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]: ...


@contextmanager
def small_cache() -> Iterator[None]:
    """Let MLX hoard few freed buffers while weights stream through, and none afterwards."""
    before = mx.set_cache_limit(CACHE_BYTES)
    try:
        yield
    finally:
        mx.set_cache_limit(before)
        mx.clear_cache()


def in_process(source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]:
    """The executor of one machine: every job in this process, in the order given."""
    if not units:
        return
    with small_cache():
        arrays = source.arrays()
        wanted = [arrays[f"{unit.path}.weight"] for unit in units]
        arrays.clear()
        wanted.reverse()
        mx.async_eval(wanted[-1])
        for unit in units:
            weight = wanted.pop()
            mx.eval(weight)
            if wanted:
                mx.async_eval(wanted[-1])
            yield unit, job(unit, weight)
            del weight
