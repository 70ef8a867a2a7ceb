"""Reads the next batch while the disk is idle.

A batch of one large unit leaves nothing to read while it is computed. If the next batch is known by then, the worker
begins to read its first weight, as it does within a batch. If the next batch is announced later, when the working
thread is busy, another thread reads the files into the system's cache and drops the bytes. That takes no memory of this
process, and the system can take the cache back at any time. Nothing is read ahead while memory is short.
"""

import threading
from collections.abc import Iterable
from pathlib import Path

from mint.core.memory import memory_is_short
from mint.formats.units import Unit
from mint.run.executor import Weights

Part = tuple[Path, int, int]  # file, first byte, number of bytes
PIECE_BYTES = 4 << 20


class BatchWeights(Weights):
    """The weights of all units of a model, for batches: the first weight of a batch may be begun before the batch."""

    def begin(self, unit: Unit) -> None:
        """Start to read the weight of `unit`, unless it was taken before."""
        if unit.path in self.lazy:
            super().begin(unit)

    def forget(self) -> None:
        """Drop all weights; each comes from a new module tree."""
        self.lazy.clear()
        self.codes.clear()

    def forget_kin(self, units: Iterable[Unit], keep: str = "") -> None:
        """Drop the weights that share a source tensor with `units`, and so hold it in memory, but not that of `keep`.

        So weights are dropped too that were begun and not taken.
        """
        read = {name for unit in units for name in unit.sources}
        for unit in self.units:
            if unit.path != keep and not read.isdisjoint(unit.sources):
                self.lazy.pop(unit.path, None)
                self.codes.pop(unit.path, None)


class ReadAhead:
    """The coming batches, of which one at a time is read ahead. Called by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._batches: dict[int, tuple[tuple[Part, ...], str]] = {}
        self._disk_is_free = False
        self._stop = threading.Event()

    def want(self, batch: int, parts: tuple[Part, ...], name: str) -> None:
        """A batch will begin with these parts, and the unit of this name; batches are numbered in their order."""
        with self._lock:
            self._batches[batch] = parts, name
            self._start()

    @property
    def next(self) -> str:
        """The first unit of the next batch; empty while none is known."""
        with self._lock:
            return self._batches[min(self._batches)][1] if self._batches else ""

    def free(self) -> None:
        """The current batch has read everything."""
        with self._lock:
            self._disk_is_free = True
            self._start()

    def stop(self, batch: int) -> None:
        """This batch begins or ends and needs the disk: stop to read ahead, and forget this batch and earlier ones."""
        with self._lock:
            self._disk_is_free = False
            self._batches = {number: first for number, first in self._batches.items() if number > batch}
            self._stop.set()

    def _start(self) -> None:
        if self._disk_is_free and self._batches:
            parts, _ = self._batches.pop(min(self._batches))
            self._disk_is_free = False
            self._stop = threading.Event()
            threading.Thread(target=read, args=(parts, self._stop), daemon=True).start()


def read(parts: Iterable[Part], stop: threading.Event) -> int:
    """Read parts of files and drop the bytes, until `stop` is set or memory is short; return the number of bytes."""
    piece = memoryview(bytearray(PIECE_BYTES))
    total = 0
    for path, start, nbytes in parts:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            end = total + nbytes
            while total < end and not stop.is_set() and not memory_is_short():
                count = file.readinto(piece[: min(end - total, PIECE_BYTES)])
                if not count:
                    break
                total += count
    return total
