"""What the coordinator hears and what it says: records only, so that both can be written down and replayed."""

from collections.abc import Mapping
from dataclasses import dataclass

# events name the worker that they come from: one incarnation of one node. A node that comes back is a new worker


@dataclass(frozen=True, slots=True)
class Item:
    """A piece of work. Items of one `group` are read from the same shards, so the same workers can do them."""

    name: str
    nbytes: int
    group: str = ""


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker is there; `missing` says how many bytes it would have to borrow for each group that it can do."""

    worker: str
    missing: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Arrived:
    """The result of an item came from a worker."""

    worker: str
    item: str


@dataclass(frozen=True, slots=True)
class Failed:
    """An item raised on a worker that goes on with the rest of the batch."""

    worker: str
    item: str
    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A batch is over: whatever of it has not arrived will not come."""

    worker: str
    batch: int


@dataclass(frozen=True, slots=True)
class Broken:
    """The stream of a batch broke off; the worker may live."""

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
    """Nothing was heard of a worker for as long as it was given. The coordinator says this to itself."""

    worker: str


Event = Joined | Arrived | Failed | Ended | Broken | Answered | Died | Overdue


@dataclass(frozen=True, slots=True)
class Send:
    """Give a worker these items, to be done in this order."""

    worker: str
    batch: int
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Skip:
    """Tell a worker not to begin these items of a batch; done all the same, they do no harm."""

    worker: str
    batch: int
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask a worker whether it is there."""

    worker: str


@dataclass(frozen=True, slots=True)
class Dismiss:
    """Expect nothing more of a worker; its node may send a new one."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Accept:
    """The result that just arrived is the first of its item. Without this it is a double, to be dropped."""

    item: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing is left to wait for: all is done but the items that broke workers and those that nobody could do."""

    poisoned: Mapping[str, tuple[str, ...]]  # what happened each time, by item
    stranded: tuple[str, ...]


Command = Send | Skip | Ping | Dismiss | Accept | Finish


@dataclass(frozen=True, slots=True)
class Policy:
    """How much at once, and how long to wait."""

    window: int = 2  # batches that a worker has
    batch_items: int = 64
    batch_bytes: int = 1 << 30
    patience_seconds: float = 30.0  # without progress
    slowest: float = 5e6  # bytes per second; a large item is given its time at this rate on top
    answer_seconds: float = 30.0  # for a ping: more than a cable is out on a good day
    stranded_seconds: float = 120.0  # for a worker that can do what is left
    silences: int = 4  # answers to pings in a row, without progress, that are believed
    attempts: int = 2  # workers that an item may break
