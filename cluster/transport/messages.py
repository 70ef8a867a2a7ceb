"""Messages of workers: small results travel together, large ones in pieces.

A message costs Ray a quarter of a millisecond, however little is in it.

A result waits for the next ones only while that is short: `HOLD_SECONDS` from when the first of them was there to when
the next one is expected, which is told from its bytes and the pace of the last, and a twentieth of the time that the
worker has worked. So what the head hears is never older than that, its deadlines mean what they say, a large unit never
holds back the small ones before it, and the head shares out the last units by what is true.

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
PARCEL_BYTES = 256 << 10  # a parcel is sent when it has so many; packed weights have more and travel as they come

T = TypeVar("T")


class Parcel(Generic[T]):
    """Entries that are held back, and for how long. One for all batches of a job, made when it begins."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: list[T] = []
        self._nbytes = 0
        self._since = 0.0  # when the first entry came
        self._began = self._last = clock()  # the job; when the last unit was done
        self._pace = inf  # seconds a byte of the last unit

    def add(self, entry: T, nbytes: int) -> bool:
        """Hold an entry with so many bytes; whether the parcel is full."""
        if not self._entries:
            self._since = self._clock()
        self._entries.append(entry)
        self._nbytes += nbytes
        return self._nbytes >= PARCEL_BYTES

    def is_due(self, done: int, following: int | None) -> bool:
        """Whether to send what is held, now that a unit of `done` bytes is done and one of `following` bytes is next.

        Without a next one it is.
        """
        now = self._clock()
        self._pace = (now - self._last) / max(done, 1)
        self._last = now
        if not self._entries:
            return False
        hold = min(HOLD_SECONDS, HOLD_SHARE * (now - self._began))
        return following is None or now + self._pace * following - self._since > hold

    def take(self) -> list[T]:
        """What was held; it is not any more."""
        taken, self._entries, self._nbytes = self._entries, [], 0
        return taken


class Gathering:
    """Pieces that wait for the rest of their result."""

    def __init__(self) -> None:
        self._pieces: dict[tuple[str, int], list[bytes]] = {}

    def add(self, worker: str, batch: int, message: bytes) -> list[tuple[Arrived | Failed, list[bytes]]]:
        """What has happened with this message, in its order, and the pieces of each result that is whole now."""
        found: list[tuple[Arrived | Failed, list[bytes]]] = []
        for item, reason, piece, is_last in unpack(message):
            if reason:  # what came of it before, came before it failed
                self.forget(worker, batch)
                found.append((Failed(worker, item, reason), []))
                continue
            pieces = self._pieces.setdefault((worker, batch), [])
            pieces.append(piece)
            if is_last:
                del self._pieces[worker, batch]
                found.append((Arrived(worker, item), pieces))
        return found

    def forget(self, worker: str, batch: int) -> None:
        """A stream is over; what it left unfinished is dropped."""
        self._pieces.pop((worker, batch), None)
