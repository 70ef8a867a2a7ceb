"""Messages of workers: small results travel together, large ones in pieces.

A message costs Ray a quarter of a millisecond, however small it is.

The wait of a result for the next ones is limited: from the first result to the expected end of the next unit (by its
bytes and the pace of the last unit) at most `HOLD_SECONDS`, and a twentieth of the time that the worker has worked. So
no message is older than that, the deadlines of the head stay exact, a large unit never delays the small ones before it,
and the head distributes the last units by recent news.

A batch sends one result after the other, so at most one result of a worker is held in pieces.
"""

import time
from collections.abc import Callable
from math import inf
from typing import Generic, TypeVar

from cluster.schedule.events import Arrived, Failed
from cluster.transport.wire import unpack

HOLD_SECONDS = 0.25
HOLD_SHARE = 0.05  # of the time worked so far
PARCEL_BYTES = 256 << 10  # a parcel with so many is sent; packed weights have more and travel as they come

T = TypeVar("T")


class Parcel(Generic[T]):
    """Entries that are held back, and for how long. One parcel serves all batches of a job from its begin."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: list[T] = []
        self._nbytes = 0
        self._since = 0.0  # when the first entry came
        self._began = self._last = clock()  # the job; when the last unit was done
        self._pace = inf  # seconds a byte of the last unit

    def add(self, entry: T, nbytes: int) -> bool:
        """Hold an entry with so many bytes; True if the parcel is full."""
        if not self._entries:
            self._since = self._clock()
        self._entries.append(entry)
        self._nbytes += nbytes
        return self._nbytes >= PARCEL_BYTES

    def is_due(self, done: int, following: int | None) -> bool:
        """True if the parcel is to be sent after a unit of `done` bytes, before one of `following` bytes or none."""
        now = self._clock()
        self._pace, self._last = (now - self._last) / max(done, 1), now
        if not self._entries:
            return False
        hold = min(HOLD_SECONDS, HOLD_SHARE * (now - self._began))
        return following is None or now + self._pace * following - self._since > hold

    def take(self) -> list[T]:
        """Empty the parcel; return its entries."""
        entries, self._entries, self._nbytes = self._entries, [], 0
        return entries


class Gathering:
    """The stream of one batch of a worker, with the pieces that wait for the rest of their result."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._pieces: list[bytes] = []

    def add(self, message: bytes) -> list[tuple[Arrived | Failed, list[bytes]]]:
        """The events of this message, in its order, and the pieces of each result that is whole now."""
        events: list[tuple[Arrived | Failed, list[bytes]]] = []
        for item, reason, piece, is_last in unpack(message):
            self._pieces.append(piece)
            if reason:  # earlier pieces are of no use
                events.append((Failed(self._worker, item, reason), []))
            elif is_last:
                events.append((Arrived(self._worker, item), self._pieces))
            if is_last:
                self._pieces = []
        return events
