"""Events for the coordinator, its items and its policy: plain records, so that a run can be logged and replayed.

A worker is one incarnation of a node: a node that comes back is a new worker.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Piece = bytes | memoryview  # of a result


@dataclass(frozen=True, slots=True)
class Item:
    """A unit of work. Items of one `group` are read from the same shards, so the same workers can do them."""

    name: str
    nbytes: int
    group: str = ""


@dataclass(frozen=True)
class OfWorker:
    """News of a worker, or a command to one."""

    worker: str


@dataclass(frozen=True)
class OfBatch(OfWorker):
    batch: int


@dataclass(frozen=True)
class OfEnd(OfWorker):
    reason: str


@dataclass(frozen=True)
class Joined(OfWorker):
    """A worker is ready; `missing` is the number of bytes to borrow for each group that it can do."""

    missing: Mapping[str, int]


@dataclass(frozen=True)
class Arrived(OfWorker):
    """A worker sent the result of an item, in pieces."""

    item: str
    pieces: Sequence[Piece] = ()


@dataclass(frozen=True)
class Failed(OfWorker):
    """An item raised on a worker, which continues with the rest of the batch."""

    item: str
    reason: str


class Ended(OfBatch):
    """A batch is over: no more results of it will arrive."""


class Broken(OfBatch):
    """The stream of a batch broke; the worker may be alive."""


class Answered(OfWorker):
    """A worker answered a ping."""


class Died(OfEnd):
    """A worker is known to be dead."""


class Overdue(OfEnd):
    """A worker passed its deadline. The coordinator creates this event itself."""


Event = Joined | Arrived | Failed | Ended | Broken | Answered | Died | Overdue


@dataclass(frozen=True, slots=True)
class Policy:
    """Batch sizes and time limits."""

    window: int = 2  # batches per worker
    batch_items: int = 64
    batch_bytes: int = 1 << 30
    patience_seconds: float = 30.0  # without progress
    slowest: float = 5e6  # bytes per second; adds time for large items
    answer_seconds: float = 30.0  # for a ping: longer than a brief network outage
    stranded_seconds: float = 120.0  # for a worker to join that can do the rest
    silences: int = 4  # answered pings in a row without progress, before the worker is given up
    attempts: int = 2  # failures of an item, before it is reported
