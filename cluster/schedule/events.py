"""Events for the coordinator, its items and its policy: plain records, so that a run can be logged and replayed."""

from collections.abc import Mapping
from dataclasses import dataclass

# a worker is one incarnation of a node: a node that comes back is a new worker


@dataclass(frozen=True, slots=True)
class Item:
    """A unit of work. Items of one `group` are read from the same shards, so the same workers can do them."""

    name: str
    nbytes: int
    group: str = ""


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker is ready; `missing` is the number of bytes to borrow for each group that it can do."""

    worker: str
    missing: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Arrived:
    """A worker sent the result of an item."""

    worker: str
    item: str


@dataclass(frozen=True, slots=True)
class Failed:
    """An item raised on a worker, which continues with the rest of the batch."""

    worker: str
    item: str
    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A batch is over: no more results of it will arrive."""

    worker: str
    batch: int


@dataclass(frozen=True, slots=True)
class Broken:
    """The stream of a batch broke; the worker may be alive."""

    worker: str
    batch: int


@dataclass(frozen=True, slots=True)
class Answered:
    """A worker answered a ping."""

    worker: str


@dataclass(frozen=True, slots=True)
class Died:
    """A worker is known to be dead."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Overdue:
    """A worker passed its deadline. The coordinator creates this event itself."""

    worker: str


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
