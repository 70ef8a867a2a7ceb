"""Does the assembling node pack everything itself? Worth it where the link is slower than its own disk and chip.

Both are measured: how fast this machine packs, on the first units, whose results are kept; and how fast bytes of each
worker arrive here. The others are taken to be as fast as this machine. Nothing depends on the answer but seconds.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mint.core.sizes import format_size

TRIAL_SECONDS = 2.0  # of packing here, before anything is decided; most small models are whole by then
WORTHWHILE = 1.1  # times as fast as alone; below, the others are not worth waiting for

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reach:
    """A worker as the assembling node sees it."""

    link: float  # bytes per second of it that arrive
    crossing: float  # bytes that cross the link for each byte of weights that it packs
    own: bool = False  # on the assembling machine: its bytes cross no network


class Timed(Iterator[T]):
    """An iterator, and the seconds that it took from its first item on: what came before was getting ready."""

    def __init__(self, items: Iterator[T], clock: Callable[[], float] = time.perf_counter) -> None:
        self._items = items
        self._clock = clock
        self._spent: list[float] = []

    def __next__(self) -> T:
        started = self._clock()
        item = next(self._items)
        self._spent.append(self._clock() - started)
        return item

    @property
    def seconds(self) -> float:
        """Of all items."""
        return sum(self._spent)

    def rate(self, sizes: Sequence[int]) -> float:
        """Bytes per second, given the bytes of the items so far; without the first where there are others."""
        skipped = 1 if len(sizes) > 1 else 0
        return sum(sizes[skipped:]) / max(sum(self._spent[skipped:]), 1e-9)


def together(rate: float, workers: Sequence[Reach]) -> float:
    """Bytes of weights per second that `workers` pack and bring here, each as fast as `rate` if its link lets it.

    What comes over the network has no more room than the fastest of the links.
    """
    found = sum(min(rate, each.link / each.crossing) for each in workers if each.own)
    others = sorted((each for each in workers if not each.own), key=lambda each: each.crossing)
    room = max((each.link for each in others), default=0.0)
    for each in others:
        packed = min(rate, each.link / each.crossing, room / each.crossing)
        found += packed
        room -= packed * each.crossing
    return found


def reason_to_be_alone(rate: float, workers: Sequence[Reach]) -> str:
    """Why this machine packs everything itself; empty where the workers are worth it."""
    gain = together(rate, workers) / rate
    if gain >= WORTHWHILE:
        return ""
    links = [each.link for each in workers if not each.own]
    arriving = f"bytes of other nodes arrive at {format_size(int(max(links)))}/s" if links else "there are no others"
    return (
        f"this machine packs everything itself: it does {format_size(int(rate))} of weights a second, {arriving}, and "
        f"all workers together would be {gain:.2f} times as fast"
    )
