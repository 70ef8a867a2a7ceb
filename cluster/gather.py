"""Messages of workers put together again: one event when the last piece of a result is there.

A batch sends one result after the other, so no more than one result a worker is held in pieces.
"""

from cluster.events import Arrived, Failed
from cluster.wire import unpack


class Gathering:
    """Pieces that wait for the rest of their result."""

    def __init__(self) -> None:
        self._pieces: dict[tuple[str, int], list[bytes]] = {}

    def add(self, worker: str, batch: int, message: bytes) -> tuple[Arrived | Failed, list[bytes]] | None:
        """What has happened with this message, and the pieces of the result; None while more are to come."""
        item, reason, piece, is_last = unpack(message)
        pieces = self._pieces.setdefault((worker, batch), [])
        pieces.append(piece)
        if not is_last:
            return None
        del self._pieces[worker, batch]
        return (Failed(worker, item, reason), []) if reason else (Arrived(worker, item), pieces)

    def forget(self, worker: str, batch: int) -> None:
        """A stream is over; what it left unfinished is dropped."""
        self._pieces.pop((worker, batch), None)
