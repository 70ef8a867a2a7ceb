"""All items of a run in a few arrays: about 26 bytes per item beside its name.

Items are in the order in which a worker should take them: by group, then the biggest first, then in input order. So
the items of a group are a slice, and a subset is an array of flags. The next item of a group is the first flag of its
slice. Callers know an item by its name; here an index into this order identifies it.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate

from cluster.schedule.events import Item

_SET = b"\x01"


class Roster:
    """The `names`, `sizes` in bytes and `ranks` (positions in the input) of all items by index, and their `groups`."""

    def __init__(self, items: Iterable[Item]) -> None:
        numbers: dict[str, int] = {}  # of groups, in input order
        names, nbytes, group = [], array("Q"), array("I")
        for item in items:
            names.append(item.name)
            nbytes.append(item.nbytes)
            group.append(numbers.setdefault(item.group, len(numbers)))
        self.groups = tuple(numbers)
        order = array("I", range(len(names)))
        self.ranks = array("I", sorted(order, key=lambda i: (group[i], -nbytes[i])))
        self.names = [names[i] for i in self.ranks]
        self.sizes = array("Q", (nbytes[i] for i in self.ranks))
        self._by_name = array("I", sorted(order, key=self.names.__getitem__))
        members = Counter(group)
        self._starts = array("I", accumulate((members[number] for number in range(len(numbers))), initial=0))

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: str) -> bool:
        return self.find(name) >= 0

    def find(self, name: str) -> int:
        """The index of an item; -1 if there is no such item."""
        position = bisect_left(self._by_name, name, key=self.names.__getitem__)
        if position < len(self._by_name) and self.names[self._by_name[position]] == name:
            return self._by_name[position]
        return -1

    def index(self, name: str) -> int:
        """The index of an item; raises `KeyError` if there is no such item."""
        index = self.find(name)
        if index < 0:
            raise KeyError(name)
        return index

    def nbytes(self, name: str) -> int:
        """The bytes of an item."""
        return self.sizes[self.index(name)]

    def group_at(self, index: int) -> int:
        """The group number of the item at an index."""
        return bisect_right(self._starts, index) - 1

    def slice_of(self, group: int) -> tuple[int, int]:
        """The first index of a group and the index after its last."""
        return self._starts[group], self._starts[group + 1]


class Subset:
    """A set of items of a roster: one flag per index."""

    def __init__(self, roster: Roster, *, full: bool) -> None:
        self._roster = roster
        self._flags = bytearray(_SET if full else b"\0") * len(roster)
        self._count = len(roster) if full else 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, index: int) -> bool:
        return bool(self._flags[index])

    def __iter__(self) -> Iterator[str]:
        """Names in input order."""
        indices = (index for index, flag in enumerate(self._flags) if flag)
        return map(self._roster.names.__getitem__, sorted(indices, key=self._roster.ranks.__getitem__))

    def add(self, index: int) -> bool:
        """Add an item; true if it is new."""
        is_new = not self._flags[index]
        self._flags[index] = 1
        self._count += is_new
        return is_new

    def discard(self, index: int) -> bool:
        """Remove an item; true if it was there."""
        is_there = bool(self._flags[index])
        self._flags[index] = 0
        self._count -= is_there
        return is_there

    def first(self, start: int, end: int) -> int:
        """The first index in the set within `start:end`; -1 for none."""
        return self._flags.find(_SET, start, end)
