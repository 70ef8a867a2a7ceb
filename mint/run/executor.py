"""Where jobs run. A verb gets an executor and does not know which.

The in-process executor is the default: no server, no other process. It evaluates one weight, starts to read the next
while this one is computed, and drops it; memory is bounded by the two largest neighbours, not by the model. Where
memory is short nothing is read ahead.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Protocol, TypeVar, runtime_checkable

import mlx.core as mx

from mint.core.memory import memory_is_short
from mint.formats.units import Unit
from mint.model.source import Source
from mint.run.device_kind import device_kind, joined_kinds

T = TypeVar("T")
Job = Callable[[Unit, mx.array], T]
CACHE_BYTES = 64 << 20  # freed buffers that MLX may hoard


class Executor(Protocol):
    """Do `job` for every unit of `source`; yield each unit with its result as it finishes, in any order."""

    @property
    def devices(self) -> Sequence[str]:
        """The kinds of device that it measures on."""

    @property
    def made_by(self) -> Mapping[str, str]:
        """The node that did a unit last, by the unit's path; a unit that is not there was done in this process."""

    def __call__(self, source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]: ...


@runtime_checkable
class Preparing(Protocol):
    """A job that gets ready where it is done, before the weights of its units take memory."""

    def ready(self, units: Sequence[Unit]) -> None: ...


def measuring_device(executor: Executor) -> str:
    """The kinds of device that an executor measures on, as one name."""
    return joined_kinds(executor.devices)


@contextmanager
def small_cache() -> Iterator[None]:
    """Let MLX hoard few freed buffers while weights stream through, and none afterwards."""
    before = mx.set_cache_limit(CACHE_BYTES)
    try:
        yield
    finally:
        mx.set_cache_limit(before)
        mx.clear_cache()


class Weights:
    """The weights of some units of a source, each handed out lazy and once, off a module tree that is built once.

    One that is asked for again is read again, from a new tree.
    """

    def __init__(self, source: Source, units: Iterable[Unit]) -> None:
        self._source = source
        self._units = tuple(units)
        self._lazy: dict[str, mx.array] = {}

    def take(self, unit: Unit) -> mx.array:
        """The lazy weight of `unit`: evaluate it, use it, drop it."""
        if unit.path not in self._lazy:
            arrays = self._source.arrays()
            self._lazy = {each.path: arrays[f"{each.path}.weight"] for each in self._units}
        return self._lazy.pop(unit.path)

    def begin(self, unit: Unit) -> None:
        """Start to read the weight of `unit`, which will be taken; nothing if it was taken before."""
        if unit.path in self._lazy:
            mx.async_eval(self._lazy[unit.path])

    def forget_kin(self, units: Iterable[Unit], keep: str = "") -> None:
        """Drop what is made of a source tensor that `units` are made of too: once those were read, it holds that.

        What was begun and is not taken is dropped so too; the unit at the path `keep` is not.
        """
        read = {name for unit in units for name in unit.sources}
        for unit in self._units:
            if unit.path != keep and not read.isdisjoint(unit.sources):
                self._lazy.pop(unit.path, None)


class InProcess:
    """The executor of one machine: every job in this process, in the order given."""

    made_by: Mapping[str, str] = MappingProxyType({})

    @property
    def devices(self) -> Sequence[str]:
        """The kind of this process's device."""
        return (device_kind(),)

    def __call__(self, source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]:
        """Do `job` for every unit; an `Executor`."""
        if units:
            yield from do(job, units, Weights(source, units))


in_process = InProcess()


def do(
    job: Job[T], units: Sequence[Unit], weights: Weights, when_read: Callable[[], None] = lambda: None
) -> Iterator[tuple[Unit, T]]:
    """Do `job` for every unit in the order given; `when_read` is called when the last weight has been read."""
    if isinstance(job, Preparing):
        job.ready(units)
    with small_cache():
        coming = weights.take(units[0])
        mx.async_eval(coming)
        for place, unit in enumerate(units, start=1):
            weight = coming
            mx.eval(weight)
            if place < len(units):
                coming = weights.take(units[place])
                if not memory_is_short():
                    mx.async_eval(coming)
            else:
                del coming
                when_read()
            yield unit, job(unit, weight)
            del weight
