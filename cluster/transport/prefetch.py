"""Reads the next batch while the disk is idle.

A batch of one large unit leaves nothing to read while it is computed. Where the next batch is known by then, the worker
itself begins to read the first weight of it, as it does within a batch. Where it is announced later, when the thread
that works can begin nothing, another thread reads the files into the system's cache and throws away what it read. That
takes no memory of this process, and the system takes the cache back whenever it wants. Where memory is short nothing
is read ahead.
"""

import threading
from collections.abc import Iterable
from pathlib import Path

import mlx.core as mx

from mint.core.memory import memory_is_short
from mint.formats.units import Unit
from mint.run.executor import Weights

Part = tuple[Path, int, int]  # file, first byte, number of bytes
PIECE_BYTES = 4 << 20


class BatchWeights(Weights):
    """The weights of all units of a model, for batches: the first of a batch may be begun before the batch is."""

    def begin(self, unit: Unit) -> None:
        """Start to read the weight of `unit`, which will be taken; nothing if it was taken before."""
        if unit.path in self.lazy:
            mx.async_eval(self.lazy[unit.path])

    def forget_kin(self, units: Iterable[Unit], keep: str = "") -> None:
        """Drop the weights made of a source tensor that `units` are made of too: once those were read, they hold it.

        A weight that was begun and is not taken is dropped so too; that of the unit at the path `keep` is not.
        """
        read = {name for unit in units for name in unit.sources}
        for unit in self.units:
            if unit.path != keep and not read.isdisjoint(unit.sources):
                self.lazy.pop(unit.path, None)


class ReadAhead:
    """What the batches that come next are read from; one of them is read at a time. Called by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: dict[int, tuple[tuple[Part, ...], str]] = {}
        self._disk_is_free = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def want(self, batch: int, parts: tuple[Part, ...], name: str) -> None:
        """A batch will begin with these parts, and the unit of this name; batches are numbered as they come."""
        with self._lock:
            self._wanted[batch] = parts, name
            self._start()

    @property
    def next(self) -> str:
        """The first unit of the batch that is next; empty while none is known."""
        with self._lock:
            return self._wanted[min(self._wanted)][1] if self._wanted else ""

    def free(self) -> None:
        """The batch that was begun has read everything."""
        with self._lock:
            self._disk_is_free = True
            self._start()

    def stop(self, batch: int) -> None:
        """This batch is begun or over, the disk is needed: what reads ahead stops soon, what came before is dropped."""
        with self._lock:
            self._disk_is_free = False
            self._wanted = {coming: first for coming, first in self._wanted.items() if coming > batch}
            self._stop.set()

    def wait(self) -> None:
        """Until what was begun has been read."""
        if self._thread:
            self._thread.join()

    def _start(self) -> None:
        if self._disk_is_free and self._wanted:
            parts, _ = self._wanted.pop(min(self._wanted))
            self._disk_is_free = False
            self._stop = threading.Event()
            self._thread = threading.Thread(target=read, args=(parts, self._stop), daemon=True)
            self._thread.start()


def read(parts: Iterable[Part], stop: threading.Event) -> int:
    """Read parts of files and forget them, until told to stop or memory is short; how many bytes were read."""
    piece = memoryview(bytearray(PIECE_BYTES))
    done = 0
    for path, start, nbytes in parts:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while nbytes > 0 and not stop.is_set() and not memory_is_short():
                found = file.readinto(piece[: min(nbytes, PIECE_BYTES)])
                if not found:
                    break
                nbytes -= found
                done += found
    return done
