"""Decides if the assembling node packs everything itself, which is faster where links are slow.

Two rates are measured: the packing rate of this machine, on the first units, and the arrival rate of each worker's
bytes. All workers are assumed to be as fast as this machine. The decision changes only the time, not the result.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mint.core.sizes import format_size

TRIAL_SECONDS = 2.0  # of packing here before the decision; enough to finish most small models
WORTHWHILE = 1.1  # times as fast as alone; below, workers are not used

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LinkSpeed:
    """The link from a worker to the assembling node."""

    rate: float  # bytes per second that arrive
    crossing: float  # bytes that cross the link per byte of weights packed
    is_local: bool = False  # on the assembling machine: its bytes cross no network


class Timed(Iterator[T]):
    """An iterator that measures the seconds it takes for its items."""

    def __init__(self, items: Iterator[T], clock: Callable[[], float] = time.perf_counter) -> None:
        self._items = items
        self._clock = clock
        self._seconds: list[float] = []

    def __next__(self) -> T:
        started = self._clock()
        item = next(self._items)
        self._seconds.append(self._clock() - started)
        return item

    @property
    def seconds(self) -> float:
        """Seconds for all items so far."""
        return sum(self._seconds)

    def rate(self, sizes: Sequence[int]) -> float:
        """Bytes per second, given the bytes of all items so far. The first item is skipped: it includes the start."""
        skipped = int(len(sizes) > 1)
        return sum(sizes[skipped:]) / max(sum(self._seconds[skipped:]), 1e-9)


def combined_rate(rate: float, links: Sequence[LinkSpeed]) -> float:
    """Bytes of weights per second that all workers pack and send here; each packs at most at `rate`.

    The network to this machine is as fast as the fastest of the links.
    """
    total = sum(min(rate, link.rate / link.crossing) for link in links if link.is_local)
    remote = sorted((link for link in links if not link.is_local), key=lambda link: link.crossing)
    bandwidth = max((link.rate for link in remote), default=0.0)
    for link in remote:
        packed = min(rate, link.rate / link.crossing, bandwidth / link.crossing)
        total += packed
        bandwidth -= packed * link.crossing
    return total


def reason_to_pack_alone(rate: float, links: Sequence[LinkSpeed]) -> str:
    """The reason why this machine packs everything itself; empty if the workers are worth it."""
    gain = combined_rate(rate, links) / rate
    if gain >= WORTHWHILE:
        return ""
    rates = [link.rate for link in links if not link.is_local]
    arrival = f"bytes of other nodes arrive at {format_size(int(max(rates)))}/s" if rates else "there are no others"
    return (
        f"this machine packs everything itself: it packs {format_size(int(rate))} of weights per second, {arrival}, "
        f"and all workers together would be {gain:.2f} times as fast"
    )
