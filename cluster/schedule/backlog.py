"""The unassigned items of a run, and which worker may take which next.

Scarce items come first (fewest living workers can do them), the biggest first among them. A group that no worker holds
in full goes to the workers that miss the fewest bytes of it.
"""

from collections.abc import Collection, Iterator, Mapping

from cluster.schedule.roster import Roster, Subset


class Backlog:
    """The unassigned items of a roster; all of them at first."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._waiting = Subset(roster, full=True)
        self._number = {group: number for number, group in enumerate(roster.groups)}
        slices = [slice(*roster.slice_of(group)) for group in range(len(roster.groups))]
        self._count = [own.stop - own.start for own in slices]
        self._nbytes = [sum(roster.sizes[own]) for own in slices]
        self._missing: dict[str, dict[int, int]] = {}  # bytes to borrow, by worker and group
        self._least: dict[int, int] = {}  # the fewest of these, by group
        self._able: dict[int, int] = {}  # number of workers that miss the fewest, by group

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[str]:
        return iter(self._waiting)

    def put(self, name: str) -> None:
        """Add an item, unless it is there."""
        index = self._roster.index(name)
        if self._waiting.add(index):
            self._tally(index, 1)

    def remove(self, name: str) -> None:
        """Remove an item, if it is there."""
        index = self._roster.index(name)
        if self._waiting.discard(index):
            self._tally(index, -1)

    def admit(self, worker: str, missing: Mapping[str, int]) -> None:
        """Add a worker that can do the groups of `missing`."""
        self._missing[worker] = {
            self._number[group]: nbytes for group, nbytes in missing.items() if group in self._number
        }
        self._recount()

    def forget(self, worker: str) -> None:
        """Remove a worker."""
        self._missing.pop(worker, None)
        self._recount()

    def may_take(self, worker: str, name: str) -> bool:
        """True if the worker is among those that miss the fewest bytes of the item."""
        missing, group = self._missing.get(worker, {}), self._roster.group_at(self._roster.index(name))
        return group in missing and missing[group] == self._least[group]

    def takers(self, name: str) -> list[str]:
        """The living workers that may take the item."""
        return [worker for worker in self._missing if self.may_take(worker, name)]

    def is_stuck(self) -> bool:
        """True if no living worker can do any unassigned item."""
        return not any(self._count[group] for group in self._able)

    def share(self, worker: str) -> tuple[float, float]:
        """A worker's fair share of the unassigned items, in items and bytes; shares shrink towards the end."""
        items = nbytes = 0.0
        for group in self._groups(worker):
            items += self._count[group] / self._able[group]
            nbytes += self._nbytes[group] / self._able[group]
        return items, nbytes

    def first(self, worker: str, refused: Collection[str] = ()) -> str | None:
        """The item that the worker should take next, left in the backlog; None if there is none."""
        skip = {self._roster.index(name) for name in refused}
        heads = ((group, self._head(group, skip)) for group in self._groups(worker))
        ranked = (
            (self._able[group], -self._roster.sizes[index], self._roster.ranks[index], index)
            for group, index in heads
            if index >= 0
        )
        best = min(ranked, default=None)
        return self._roster.names[best[-1]] if best else None

    def _head(self, group: int, skip: Collection[int]) -> int:
        start, end = self._roster.slice_of(group)
        index = self._waiting.first(start, end)
        while index in skip:
            index = self._waiting.first(index + 1, end)
        return index

    def _tally(self, index: int, sign: int) -> None:
        group = self._roster.group_at(index)
        self._count[group] += sign
        self._nbytes[group] += sign * self._roster.sizes[index]

    def _groups(self, worker: str) -> Iterator[int]:
        missing = self._missing.get(worker, {})
        return (group for group, nbytes in missing.items() if self._count[group] and nbytes == self._least[group])

    def _recount(self) -> None:
        pairs = [pair for missing in self._missing.values() for pair in missing.items()]
        self._least, self._able = {}, {}
        for group, nbytes in pairs:
            self._least[group] = min(self._least.get(group, nbytes), nbytes)
        for group, nbytes in pairs:
            self._able[group] = self._able.get(group, 0) + (nbytes == self._least[group])
