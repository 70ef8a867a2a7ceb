"""Commands of the coordinator: plain records, as its events are."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Send:
    """Send these items to a worker, in this order."""

    worker: str
    batch: int
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Skip:
    """Tell a worker not to begin these items of a batch; their results do no harm."""

    worker: str
    batch: int
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask a worker for a sign of life."""

    worker: str


@dataclass(frozen=True, slots=True)
class Dismiss:
    """Give up a worker; its node may start a new one."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Accept:
    """Keep the result that just arrived: it is the first of its item. Drop a result without this command."""

    item: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over: all items are done, except for bad items and items that no worker could do."""

    bad_items: Mapping[str, tuple[str, ...]]  # the reason of each attempt, by item
    stranded: tuple[str, ...]


Command = Send | Skip | Ping | Dismiss | Accept | Finish
