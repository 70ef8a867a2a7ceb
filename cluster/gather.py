"""Messages of workers taken apart and put together again: one event when the last piece of a result is there.

A batch sends one result after the other, so no more than one result a worker is held in pieces.
"""

from cluster.events import Arrived, Failed
from cluster.wire import unpack


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
