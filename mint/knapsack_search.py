"""The search for the best choice of a multiple-choice knapsack: reduce, probe, merge, hope, branch.

`mint/knapsack.py` tells how these work together.
"""

import heapq
from dataclasses import replace
from itertools import count
from math import fsum, inf
from time import perf_counter
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mint.knapsack_relaxation import (
    Case,
    Floats,
    Hull,
    Integers,
    Lattice,
    Options,
    Relaxation,
    lower_hulls,
    relax,
    restrict,
)

# N options side by side, C classes, H steps of hulls, S states

T = TypeVar("T", np.int64, np.float64)

PRECISION = 1e-12  # relative; sums of a hundred thousand float64 agree to better than this
PROBES = ((32, 512), (128, 2_048))  # (options of each kind, states) of quick searches for a good choice
MANY = 1_000  # open options above which a choice is hoped for, and classes of rare kinds are branched on
HOPES = (1 / 16, 1 / 4, 1 / 4, 1 / 4, 1 / 4, 1 / 2)  # one after another, parts of the gap left
RARE = 2  # a kind of at most seven classes
NARROW, WIDE = 2_000, 50_000  # states of a search for a proof


class Search:
    """The best choice known, and what shrinks the part of the search that could hold a better one."""

    def __init__(self, deadline: float) -> None:
        self.names = np.empty(0, np.int64)
        self.loss = inf
        self.deadline = deadline

    @property
    def limit(self) -> float:
        """A loss from here on is no gain."""
        return self.loss * (1 - PRECISION)

    @property
    def late(self) -> bool:
        return perf_counter() > self.deadline

    def offer(self, case: Case, chosen: Integers) -> None:
        """Keep the choice of these options of a case if it is the best yet."""
        loss = case.lost + fsum(case.options.loss[chosen].tolist())
        if loss < self.limit:
            self.names, self.loss = np.concatenate([case.fixed, case.options.name[chosen]]), loss

    def reduce(self, case: Case, hull: Hull) -> Case:
        """The case without the options that no better choice than the best known has."""
        while case.capacity >= 0:
            relaxation = relax(case, hull)
            self.offer(case, relaxation.base)
            bound = max(case.bound, relaxation.bound)
            if bound >= self.limit:
                break
            # the excess is above this relaxation, even where the case is known to have a higher bound
            room = self.loss * (1 + PRECISION) - relaxation.bound
            kept = relaxation.excess <= room
            spent = int(case.options.size[relaxation.base].sum())
            lattice = Lattice.of(relaxation.step, relaxation.excess, room)
            capacity = spent + int(lattice.lower(case.capacity - spent))
            if kept.all() and capacity == case.capacity:
                return replace(case, bound=bound)
            case = restrict(replace(case, capacity=capacity), kept, bound)
            hull = lower_hulls(case.options)
        return replace(case, bound=inf)

    def probe(self, case: Case, opened: int, width: int) -> None:
        """Look for a good choice among the options of each kind of class that lift the bound least."""
        relaxation = relax(case, lower_hulls(case.options))
        kind = np.repeat(case.options.common, np.diff(case.options.start))
        kept = relaxation.excess <= 0
        lifting = np.flatnonzero(~kept)
        order = lifting[np.lexsort((relaxation.excess[lifting], kind[lifting]))]
        place = np.arange(len(order)) - np.searchsorted(kind[order], kind[order])
        kept[order[place < opened]] = True
        self.merge(restrict(case, kept, case.bound), width)

    def merge(self, case: Case, width: int) -> bool:
        """Merge the classes into states; tell whether all choices better than the best known were seen."""
        options, hull = case.options, lower_hulls(case.options)
        relaxation = relax(case, hull)
        order = _merging_order(options)
        rests = Rests(options, hull, relaxation, order)
        size, loss = np.zeros(1, np.int64), np.full(1, case.lost)
        room = self.loss * (1 + PRECISION) - relaxation.bound
        lattice = rests.lattice(0, room)
        complete = True
        chosen = relaxation.base.copy()
        history: list[tuple[int, Integers, Integers]] = []
        for position, i in enumerate(order.tolist()):
            if self.late:
                return False
            if rests.turns(position):
                lattice = rests.lattice(position + 1, room)
            here = options.start[i] + np.flatnonzero(relaxation.excess[options.start[i] : options.start[i + 1]] <= room)
            if len(here) == 1:
                size, loss = size + options.size[here], loss + options.loss[here]
                continue
            size = np.add.outer(size, options.size[here]).ravel()
            loss = np.add.outer(loss, options.loss[here]).ravel()
            left = rests.spent[position] + lattice.lower(case.capacity - size - rests.spent[position])
            bound = loss + rests.relaxed(position, left)
            kept = np.flatnonzero(bound < self.limit)
            kept = kept[np.argsort(size[kept], kind="stable")]
            kept = kept[_undominated(size[kept], loss[kept])]
            if len(kept) > width:
                complete = False
                kept = kept[np.sort(np.argpartition(bound[kept], width)[:width])]
            if not len(kept):
                return complete
            size, loss = size[kept], loss[kept]
            history.append((i, kept // len(here), here[kept % len(here)]))
            priced = loss + rests.lost[position] - relaxation.price * (left[kept] - rests.spent[position])
            room = min(room, self.loss * (1 + PRECISION) - float(priced.min()))
        fits = np.flatnonzero(size <= case.capacity)
        if not len(fits):
            return complete
        state = int(fits[np.argmin(loss[fits])])
        for i, parent, option in reversed(history):
            chosen[i] = option[state]
            state = parent[state]
        self.offer(case, chosen)
        return complete

    def run(self, root: Case, hull: Hull) -> float:
        """Search until the best choice is proved or time is up; returns the bound."""
        serial = count()  # equal bounds in the order they were found
        whole = self.reduce(root, hull)
        heap = [(whole.bound, next(serial), whole)]
        while heap and heap[0][0] < self.limit and not self.late:
            case = heapq.heappop(heap)[2]
            case = self.reduce(case, lower_hulls(case.options))
            for part in self.settle(case):
                heapq.heappush(heap, (part.bound, next(serial), part))
        return min(heap[0][0] if heap else inf, self.loss)

    def settle(self, case: Case) -> list[Case]:
        """What is left of a case after the cheapest way to settle it; nothing if it is proved."""
        for opened, width in PROBES:
            if case.bound < self.limit and len(case.options.name) > 4 * opened:
                self.probe(case, opened, width)
                case = self.reduce(case, lower_hulls(case.options))
        if case.bound >= self.limit:
            return []
        for part in HOPES if len(case.options.name) > MANY else ():
            case = self.reduce(self.hope(case, part), lower_hulls(case.options))
            if case.bound >= self.limit:
                return []
        many = len(case.options.name) > MANY
        if not many and self.merge(case, NARROW):
            return []
        first = _merging_order(case.options)[0]
        parts = self.branch(case, int(first))
        halved = 2 * sum(len(part.options.name) for part in parts) <= len(case.options.name)
        if halved or (many and case.options.common[first] <= RARE) or not self.merge(case, WIDE):
            return [part for part in parts if part.bound < self.limit]
        return []

    def hope(self, case: Case, part: float) -> Case:
        """The case with its bound raised if no choice takes only a part of the gap, and searched for one."""
        names, loss = self.names, self.loss
        hoped = case.bound + part * (loss - case.bound)
        self.loss = hoped
        near = self.reduce(case, lower_hulls(case.options))
        complete = near.bound >= self.limit or self.merge(near, WIDE)
        if self.loss == hoped:
            self.names, self.loss = names, loss
            return replace(case, bound=hoped * (1 - PRECISION)) if complete else case
        return replace(case, bound=self.loss) if complete else case

    def branch(self, case: Case, chosen: int) -> list[Case]:
        """The cases in which a class has each of its options, as far as they can hold a better choice."""
        kept = case.options.row != chosen
        parts = []
        for option in range(case.options.start[chosen], case.options.start[chosen + 1]):
            kept[option] = True
            part = restrict(case, kept, case.bound)
            parts.append(self.reduce(part, lower_hulls(part.options)))
            kept[option] = False
        return [part for part in parts if part.bound < self.limit]


def _merging_order(options: Options) -> Integers:
    """The classes of rare kinds first, so that those left have one lattice; of one kind the largest steps first."""
    return np.lexsort((-options.size[options.start[1:] - 1], options.common))


def _undominated(size: Integers, loss: Floats) -> NDArray[np.bool_]:
    """Of states by size, those with less loss than all before."""
    least = np.minimum.accumulate(loss)
    kept = np.ones(len(size), np.bool_)
    kept[1:] = loss[1:] < least[:-1]
    return kept


def _tails(values: NDArray[T]) -> NDArray[T]:
    """(V,) -> (V + 1,) the sum of the values from each one on, and 0."""
    return np.concatenate([np.cumsum(values[::-1])[::-1], np.zeros(1, values.dtype)])


class Rests:
    """What the classes after each position of an order can still do."""

    def __init__(self, options: Options, hull: Hull, relaxation: Relaxation, order: Integers) -> None:
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        self._hull = hull
        self._rank_of_step = rank[hull.row]
        self._rank = np.repeat(rank, np.diff(options.start))
        self._relaxation = relaxation
        self._common = options.common[order]
        self._least = _tails(options.loss[options.start[1:] - 1][order])[1:]
        self.spent = _tails(options.size[relaxation.base][order])[1:]  # by the base
        self.lost = _tails(options.loss[relaxation.base][order])[1:]

    def turns(self, position: int) -> bool:
        """Whether the classes after this one are of another kind."""
        return position + 1 < len(self._common) and bool(self._common[position] != self._common[position + 1])

    def lattice(self, position: int, room: float) -> Lattice:
        """The lattice of the classes from this position on."""
        later = self._rank >= position
        return Lattice.of(self._relaxation.step[later], self._relaxation.excess[later], room)

    def relaxed(self, position: int, left: Integers) -> Floats:
        """The relaxed loss of the classes after this position with so many bytes left for them."""
        later = self._rank_of_step > position
        size = np.concatenate([[0], np.cumsum(self._hull.size[later])])
        loss = _tails(self._hull.loss[later]) + self._least[position]
        relaxed: Floats = np.interp(left, size, loss, left=inf)
        return relaxed
