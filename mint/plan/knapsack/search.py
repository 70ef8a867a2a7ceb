"""The search for the best choice of a multiple-choice knapsack: reduce, dive, split, probe, hope, merge, branch.

`mint/plan/knapsack/solve.py` tells how these work together.
"""

import heapq
from dataclasses import replace
from itertools import count
from math import fsum, inf

import numpy as np

from mint.plan.knapsack.merge import Patience, exchange, least_lifting, merge
from mint.plan.knapsack.relaxation import Case, Floats, Hull, Integers, lower_hulls, relax, relax_each, restrict, snap

# C classes, J options of one of them

PRECISION = 1e-12  # relative; sums of a hundred thousand float64 agree to better than this
EXCHANGED = 16  # options of each kind of class among which exchanges are tried
FEW, MANY = 200, 1_000  # open options: up to the first only merging pays, above the second also hoping
DIVED = 5_000  # open options from which on exchanges leave nothing to dive for
DEPTH = 3  # classes fixed in a dive
SPLIT = 1 / 4  # of the gap, from which on branching closes enough of it
PROBED = 128, 2_048  # options of each kind and states of a probe
HOPES = 1 / 16, 1 / 2  # one after another, parts of the gap left
NARROW, WIDE = 2_000, 50_000  # states of a search for a proof


class Search:
    """The best choice known, and what shrinks the part of the search that could hold a better one."""

    def __init__(self, patience: Patience) -> None:
        self.names = np.empty(0, np.int64)
        self.loss = inf
        self.patience = patience

    @property
    def limit(self) -> float:
        """A loss from here on is no gain."""
        return self.loss * (1 - PRECISION)

    def offer(self, case: Case, chosen: Integers) -> None:
        """Keep the choice of these options of a case if it is the best yet."""
        loss = case.lost + fsum(case.options.loss[chosen].tolist())
        if loss < self.limit:
            self.names, self.loss = np.concatenate([case.fixed, case.options.name[chosen]]), loss

    def run(self, root: Case, hull: Hull) -> float:
        """Search until the best choice is proved or time is up; returns the bound."""
        serial = count()  # equal bounds in the order they were found
        heap: list[tuple[float, int, Case]] = []
        case = self.reduce(root, hull)
        while True:
            for part in [case] if self.patience.over else self.settle(case):
                heapq.heappush(heap, (part.bound, next(serial), part))
            if self.patience.over or not heap or heap[0][0] >= self.limit:
                return min(heap[0][0] if heap else inf, self.loss)
            case = self.reduce(heapq.heappop(heap)[2])

    def settle(self, case: Case) -> list[Case]:
        """What is left of a reduced case after the cheapest way to settle it; nothing if it is proved."""
        case = self.dive(case)
        if case.bound >= self.limit:
            return []
        broken, bounds = _broken(case)
        if bounds.min() - case.bound >= SPLIT * (self.loss - case.bound):
            return self.branch(case, broken, bounds)
        case = self.probe(case)
        for part in HOPES:
            case = self.hope(case, part)
        for width in (WIDE,) if len(case.options.name) > MANY else (NARROW, WIDE):
            if case.bound >= self.limit or self.merge(case, width):
                return []
            case = self.reduce(case)
        return self.branch(case, *_broken(case)) if case.bound < self.limit else []

    def reduce(self, case: Case, hull: Hull | None = None) -> Case:
        """The case without the options that no better choice than the best known has."""
        while case.capacity >= 0:
            self.patience.states -= len(case.options.name)
            relaxation = relax(case, hull or lower_hulls(case.options))
            self.offer(case, relaxation.base)
            bound = max(case.bound, relaxation.bound)
            if bound >= self.limit:
                break
            # the excess is above this relaxation, even where the case is known to have a higher bound
            room = self.loss * (1 + PRECISION) - relaxation.bound
            self.offer(case, exchange(case, relaxation, room, EXCHANGED))
            room = self.loss * (1 + PRECISION) - relaxation.bound
            kept = relaxation.excess <= room
            reduced = snap(case, relaxation, room) if kept.all() else restrict(case, kept, bound)
            if reduced is case:
                return replace(case, bound=bound)
            case, hull = reduced, None
        return replace(case, bound=inf)

    def merge(self, case: Case, width: int) -> bool:
        """Whether merging the classes with so many states saw every better choice; the best it saw is kept."""
        merged = merge(case, self.limit, width, self.patience)
        self.offer(case, merged.chosen)
        return merged.complete

    def dive(self, case: Case) -> Case:
        """The case reduced after a look for good choices with the most promising option of each class that breaks."""
        known, part = self.loss, case
        for _ in range(DEPTH):
            if part.bound >= self.limit or not FEW < len(part.options.name) <= DIVED:
                break
            broken, bounds = _broken(part)
            part = self.reduce(_fixed(part, broken, int(np.argmin(bounds)), float(bounds.min())))
        return self.reduce(case) if self.loss < known else case

    def probe(self, case: Case) -> Case:
        """The case reduced after a narrow merge of those options of each kind of class that lift the bound least."""
        opened, width = PROBED
        if len(case.options.name) <= max(FEW, opened):
            return case
        relaxation = relax(case, lower_hulls(case.options))
        kept = relaxation.step == 0
        kept[least_lifting(case.options, relaxation, inf, opened)] = True
        self.merge(restrict(case, kept, case.bound), width)
        return self.reduce(case)

    def hope(self, case: Case, part: float) -> Case:
        """The case with its bound raised if no choice takes only a part of the gap, and searched for one."""
        if case.bound >= self.limit or len(case.options.name) <= MANY:
            return case
        names, loss = self.names, self.loss
        hoped = case.bound + part * (loss - case.bound)
        self.loss = hoped
        near = self.reduce(case)
        complete = near.bound >= self.limit or self.merge(near, WIDE)
        if self.loss == hoped:
            self.names, self.loss = names, loss
            hoped *= 1 - PRECISION
        else:
            hoped = self.loss
        return self.reduce(replace(case, bound=hoped) if complete else case)

    def branch(self, case: Case, chosen: int, bounds: Floats) -> list[Case]:
        """The cases in which a class has each of its options, as far as they can hold a better choice."""
        return [
            _fixed(case, chosen, j, max(case.bound, float(bounds[j])))
            for j in np.flatnonzero(bounds < self.limit).tolist()
        ]


def _broken(case: Case) -> tuple[int, Floats]:
    """The class that the relaxation breaks, and (J,) the bound with each of its options."""
    hull = lower_hulls(case.options)
    broken = relax(case, hull).broken
    return broken, relax_each(case, hull, broken)


def _fixed(case: Case, chosen: int, j: int, bound: float) -> Case:
    """The case with a class fixed to its option `j`."""
    kept = case.options.row != chosen
    kept[case.options.start[chosen] + j] = True
    return restrict(case, kept, bound)
