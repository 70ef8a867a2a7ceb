"""The items that nobody has in hand, and who may take which next.

Scarce items first (those that the fewest living workers can do), the biggest first among them. A group that has to be
borrowed goes to the workers that miss the fewest bytes of it.
"""

from collections.abc import Collection, Iterator, Mapping

from cluster.schedule.roster import Roster, Subset


class Backlog:
    """What waits of a roster: all of it at first."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._waiting = Subset(roster, full=True)
        self._number = {group: number for number, group in enumerate(roster.groups)}
        slices = [roster.slice_of(group) for group in range(len(roster.groups))]
        self._count = [end - start for start, end in slices]
        self._nbytes = [sum(map(roster.nbytes_at, range(start, end))) for start, end in slices]
        self._reach: dict[str, dict[int, int]] = {}  # bytes to borrow, by worker and group
        self._least: dict[int, int] = {}
        self._able: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[str]:
        return iter(self._waiting)

    def put(self, name: str) -> None:
        """Let an item wait (again)."""
        place = self._roster.place(name)
        if self._waiting.add(place):
            self._tally(place, 1)

    def remove(self, name: str) -> None:
        """Let an item wait no more."""
        place = self._roster.place(name)
        if self._waiting.discard(place):
            self._tally(place, -1)

    def admit(self, worker: str, missing: Mapping[str, int]) -> None:
        """A worker is there that can do these groups."""
        known = ((self._number.get(group), nbytes) for group, nbytes in missing.items())
        self._reach[worker] = {group: nbytes for group, nbytes in known if group is not None}
        self._recount()

    def forget(self, worker: str) -> None:
        """A worker is gone."""
        self._reach.pop(worker, None)
        self._recount()

    def may_take(self, worker: str, name: str) -> bool:
        """Whether a worker is among those that should do this item."""
        return self._is_best(worker, self._group(name))

    def takers(self, name: str) -> list[str]:
        """The living workers that should do this item."""
        group = self._group(name)
        return [worker for worker in self._reach if self._is_best(worker, group)]

    def is_stuck(self) -> bool:
        """Whether no living worker can do anything that waits."""
        return not any(self._count[group] for group in self._able)

    def room(self, worker: str) -> tuple[float, float]:
        """A fair share for a worker, in items and bytes, of all that waits for it: shares shrink towards the end."""
        items = nbytes = 0.0
        for group in self._groups(worker):
            items += self._count[group] / self._able[group]
            nbytes += self._nbytes[group] / self._able[group]
        return items, nbytes

    def first(self, worker: str, refused: Collection[str] = ()) -> str | None:
        """The item that a worker should take next, which goes on waiting until it is removed; None for nothing."""
        skip = {self._roster.place(name) for name in refused}
        best: tuple[int, int, int, int] | None = None
        for group in self._groups(worker):
            place = self._head(group, skip)
            if place >= 0:
                found = self._able[group], -self._roster.nbytes_at(place), self._roster.rank(place), place
                best = min(best or found, found)
        return self._roster.name(best[3]) if best else None

    def _head(self, group: int, skip: Collection[int]) -> int:
        start, end = self._roster.slice_of(group)
        place = self._waiting.first(start, end)
        while place in skip:
            place = self._waiting.first(place + 1, end)
        return place

    def _tally(self, place: int, sign: int) -> None:
        group = self._roster.group_at(place)
        self._count[group] += sign
        self._nbytes[group] += sign * self._roster.nbytes_at(place)

    def _group(self, name: str) -> int:
        return self._roster.group_at(self._roster.place(name))

    def _groups(self, worker: str) -> Iterator[int]:
        reach = self._reach.get(worker, {})
        return (group for group, nbytes in reach.items() if self._count[group] and nbytes == self._least[group])

    def _is_best(self, worker: str, group: int) -> bool:
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
