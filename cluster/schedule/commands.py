"""Commands of the coordinator: plain records, as its events are."""

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.schedule.events import OfBatch, OfEnd, OfWorker


@dataclass(frozen=True)
class _OfItems(OfBatch):
    items: tuple[str, ...]


class Send(_OfItems):
    """Send these items to a worker, in this order."""


class Skip(_OfItems):
    """Tell a worker not to begin these items of a batch; their results do no harm."""


class Ping(OfWorker):
    """Ask a worker for a sign of life."""


class Dismiss(OfEnd):
    """Give up a worker; its node may start a new one."""


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
