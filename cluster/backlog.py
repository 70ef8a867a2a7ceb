"""The items that nobody has in hand, and who may take which next.

Scarce items first (those that the fewest living workers can do), the biggest first among them. A group that has to be
borrowed goes to the workers that miss the fewest bytes of it.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping

from cluster.events import Item


class Backlog:
    """Waiting items in one heap a group; taking one costs the logarithm of their number."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = {item.name: item for item in items}
        self._rank = {name: rank for rank, name in enumerate(self._items)}
        self._waiting: set[str] = set()
        self._heaps: dict[str, list[tuple[int, int, str]]] = {}
        self._nbytes: dict[str, int] = {}
        self._count: dict[str, int] = {}
        self._reach: dict[str, Mapping[str, int]] = {}
        self._least: dict[str, int] = {}
        self._able: dict[str, int] = {}
        for name in self._items:
            self.put(name)

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._waiting, key=self._rank.__getitem__))

    def put(self, name: str) -> None:
        """Let an item wait (again)."""
        if name in self._waiting:
            return
        item = self._items[name]
        self._waiting.add(name)
        heapq.heappush(self._heaps.setdefault(item.group, []), (-item.nbytes, self._rank[name], name))
        self._nbytes[item.group] = self._nbytes.get(item.group, 0) + item.nbytes
        self._count[item.group] = self._count.get(item.group, 0) + 1

    def remove(self, name: str) -> None:
        """Let an item wait no more; its place in the heap is passed over later."""
        if name in self._waiting:
            item = self._items[name]
            self._waiting.discard(name)
            self._nbytes[item.group] -= item.nbytes
            self._count[item.group] -= 1

    def admit(self, worker: str, missing: Mapping[str, int]) -> None:
        """A worker is there that can do these groups."""
        self._reach[worker] = missing
        self._recount()

    def forget(self, worker: str) -> None:
        """A worker is gone."""
        self._reach.pop(worker, None)
        self._recount()

    def may_take(self, worker: str, name: str) -> bool:
        """Whether a worker is among those that should do this item."""
        return self._is_best(worker, self._items[name].group)

    def takers(self, name: str) -> list[str]:
        """The living workers that should do this item."""
        group = self._items[name].group
        return [worker for worker in self._reach if self._is_best(worker, group)]

    def room(self, worker: str) -> tuple[float, float]:
        """A fair share for a worker, in items and bytes, of all that waits for it: shares shrink towards the end."""
        items = nbytes = 0.0
        for group in self._groups(worker):
            items += self._count[group] / self._able[group]
            nbytes += self._nbytes[group] / self._able[group]
        return items, nbytes

    def first(self, worker: str, refused: Iterable[str] = ()) -> str | None:
        """The item that a worker should take next, which goes on waiting until it is removed; None for nothing."""
        skip = set(refused)
        best: tuple[int, int, int, str] | None = None
        for group in self._groups(worker):
            found = self._head(group, skip)
            if found and (best is None or (self._able[group], *found) < best):
                best = (self._able[group], *found)
        return best[3] if best else None

    def _head(self, group: str, skip: set[str]) -> tuple[int, int, str] | None:
        heap = self._heaps[group]
        while heap and heap[0][2] not in self._waiting:
            heapq.heappop(heap)
        if not heap or heap[0][2] not in skip:
            return heap[0] if heap else None
        return min((entry for entry in heap if entry[2] in self._waiting and entry[2] not in skip), default=None)

    def _groups(self, worker: str) -> Iterator[str]:
        reach = self._reach.get(worker, {})
        return (group for group in self._heaps if self._count[group] and reach.get(group) == self._least.get(group, -1))

    def _is_best(self, worker: str, group: str) -> bool:
        reach = self._reach.get(worker, {})
        return group in reach and reach[group] == self._least[group]

    def _recount(self) -> None:
        self._least, self._able = {}, {}
        for missing in self._reach.values():
            for group, nbytes in missing.items():
                self._least[group] = min(self._least.get(group, nbytes), nbytes)
        for missing in self._reach.values():
            for group, nbytes in missing.items():
                self._able[group] = self._able.get(group, 0) + (nbytes == self._least[group])
