"""All items of a run in a few arrays: some 26 bytes an item beside its name, however long the run.

Items lie in the order in which a worker should take them: group by group, the biggest first, else as they were given.
So the items of a group are a slice, what waits is a row of flags, and the next to take is the first flag of a slice. An
item is known to the world by its name, here by its place in this order.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate

from cluster.schedule.events import Item

_SET = b"\x01"


class Roster:
    """Names, bytes and groups of items that never change."""

    def __init__(self, items: Iterable[Item]) -> None:
        numbers: dict[str, int] = {}  # of groups, as they come
        names, nbytes, group = [], array("Q"), array("I")
        for item in items:
            names.append(item.name)
            nbytes.append(item.nbytes)
            group.append(numbers.setdefault(item.group, len(numbers)))
        self.groups = tuple(numbers)
        order = array("I", range(len(names)))
        self._rank = array("I", sorted(order, key=lambda i: (group[i], -nbytes[i])))
        self._names = [names[i] for i in self._rank]
        self._nbytes = array("Q", (nbytes[i] for i in self._rank))
        self._by_name = array("I", sorted(order, key=self._names.__getitem__))
        sizes = Counter(group)
        self._starts = array("I", accumulate((sizes[number] for number in range(len(numbers))), initial=0))

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: str) -> bool:
        return self.find(name) >= 0

    def find(self, name: str) -> int:
        """Where an item lies in the order of taking; -1 for one that is not there."""
        index = bisect_left(self._by_name, name, key=self._names.__getitem__)
        if index < len(self._by_name) and self._names[self._by_name[index]] == name:
            return self._by_name[index]
        return -1

    def place(self, name: str) -> int:
        """`find` for an item that must be there; raises `KeyError`."""
        place = self.find(name)
        if place < 0:
            raise KeyError(name)
        return place

    def name(self, place: int) -> str:
        """The name of the item at a place."""
        return self._names[place]

    def rank_of(self, name: str) -> int:
        """How many items were given before an item."""
        return self._rank[self.place(name)]

    def rank(self, place: int) -> int:
        """How many items were given before the one at a place."""
        return self._rank[place]

    def nbytes(self, name: str) -> int:
        """The bytes of an item."""
        return self._nbytes[self.place(name)]

    def nbytes_at(self, place: int) -> int:
        """The bytes of the item at a place."""
        return self._nbytes[place]

    def group_at(self, place: int) -> int:
        """The number of the group of the item at a place."""
        return bisect_right(self._starts, place) - 1

    def slice_of(self, group: int) -> tuple[int, int]:
        """The first place of a group and the one behind its last."""
        return self._starts[group], self._starts[group + 1]


class Subset:
    """Some items of a roster, by their places: a flag each."""

    def __init__(self, roster: Roster, *, full: bool) -> None:
        self._roster = roster
        self._flags = bytearray(_SET if full else b"\0") * len(roster)
        self._count = len(roster) if full else 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, place: int) -> bool:
        return bool(self._flags[place])

    def __iter__(self) -> Iterator[str]:
        """Names in the order in which the items were given."""
        places = (place for place in range(len(self._flags)) if self._flags[place])
        return map(self._roster.name, sorted(places, key=self._roster.rank))

    def add(self, place: int) -> bool:
        """Take an item in; whether it was not there."""
        fresh = not self._flags[place]
        self._flags[place] = 1
        self._count += fresh
        return fresh

    def discard(self, place: int) -> bool:
        """Take an item out; whether it was there."""
        there = bool(self._flags[place])
        self._flags[place] = 0
        self._count -= there
        return there

    def first(self, start: int, end: int) -> int:
        """The first place from `start` on and before `end` that is there; -1 for none."""
        return self._flags.find(_SET, start, end)
