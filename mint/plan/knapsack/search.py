"""Searches the best choice of a knapsack: reduce, dive, split, probe, aspire, merge, branch.

`mint/plan/knapsack/solve.py` gives the theory.
"""

import heapq
from dataclasses import dataclass, replace
from itertools import count
from math import fsum, inf

import numpy as np

from mint.plan.knapsack.merge import CROWD, ProofBudget, exchange, least_excess, merge
from mint.plan.knapsack.relaxation import Case, Floats, Integers, relax, relax_each, restrict, snap

# C classes, J options of one of them

PRECISION = 1e-12  # relative; sums of a hundred thousand float64 agree to better than this


@dataclass(frozen=True, slots=True)
class Tuning:
    """Thresholds between the stages of the search. They decide its speed, never the loss of a proved answer."""

    exchange_options: int = 16  # of each kind of class
    few: int = 200  # open options; up to here only merging pays
    many: int = 1_000  # open options; above, aspiration pays too
    dive_options: int = 5_000  # open options; above, exchanges leave nothing for a dive
    dive_depth: int = 3  # classes fixed in a dive
    split: float = 1 / 4  # of the gap; branching that closes at least this pays
    probe_options: int = 128  # of each kind of class
    probe_width: int = 2_048  # states
    aspirations: tuple[float, ...] = (1 / 16, 1 / 2)  # parts of the gap, one after another
    wide: int = 50_000  # states of a merge
    crowd: int = CROWD


class Search:
    """The best choice known so far, and the steps that exclude cases without a better one."""

    def __init__(self, budget: ProofBudget, tuning: Tuning) -> None:
        self.names = np.empty(0, np.int64)
        self.loss = inf
        self.budget = budget
        self.tuning = tuning

    @property
    def limit(self) -> float:
        """Only a loss below this is an improvement."""
        return self.loss * (1 - PRECISION)

    def offer(self, case: Case, chosen: Integers) -> None:
        """Keep this choice of a case if it is the best so far."""
        loss = case.lost + fsum(case.options.loss[chosen].tolist())
        if loss < self.limit:
            self.names, self.loss = np.concatenate([case.fixed, case.options.name[chosen]]), loss

    def run(self, root: Case) -> float:
        """Search until the best choice is proved or the budget is spent; return the bound."""
        serial = count()  # equal bounds in the order of discovery
        heap: list[tuple[float, int, Case]] = []
        case = self.reduce(root)
        while True:
            for part in [case] if self.budget.is_spent else self.settle(case):
                heapq.heappush(heap, (part.bound, next(serial), part))
            if self.budget.is_spent or not heap or heap[0][0] >= self.limit:
                return min(heap[0][0] if heap else inf, self.loss)
            case = self.reduce(heapq.heappop(heap)[2])

    def settle(self, case: Case) -> list[Case]:
        """The open cases after the cheapest attempt to settle a reduced case; empty if it is proved."""
        tuning = self.tuning
        case = self.dive(case)
        if case.bound >= self.limit:
            return []
        broken, bounds = _broken(case)
        if bounds.min() - case.bound >= tuning.split * (self.loss - case.bound):
            return self.branch(case, broken, bounds)
        case = self.probe(case)
        for part in tuning.aspirations:
            case = self.aspire(case, part)
        if case.bound >= self.limit or self.merge(case, tuning.wide):
            return []
        case = self.reduce(case)
        return self.branch(case, *_broken(case)) if case.bound < self.limit else []

    def reduce(self, case: Case) -> Case:
        """The case without the options that no improving choice contains."""
        while case.capacity >= 0:
            self.budget.states -= len(case.options.name)
            relaxation = relax(case)
            self.offer(case, relaxation.base)
            bound = max(case.bound, relaxation.bound)
            if bound >= self.limit:
                break
            # excess is relative to this relaxation, even if the case has a higher bound
            room = self.loss * (1 + PRECISION) - relaxation.bound
            self.offer(case, exchange(case, relaxation, room, self.tuning.exchange_options))
            room = self.loss * (1 + PRECISION) - relaxation.bound
            useful = relaxation.excess <= room
            reduced = snap(case, relaxation, room) if useful.all() else restrict(case, useful, bound)
            if reduced is case:
                return replace(case, bound=bound)
            case = reduced
        return replace(case, bound=inf)

    def merge(self, case: Case, width: int) -> bool:
        """Merge the classes with at most `width` states; true if that proves there is no better choice left."""
        merged = merge(case, self.limit, width, self.budget, crowd=self.tuning.crowd)
        self.offer(case, merged.chosen)
        return merged.complete

    def dive(self, case: Case) -> Case:
        """The case reduced after a search along the most promising option of each class that breaks."""
        known, part, tuning = self.loss, case, self.tuning
        for _ in range(tuning.dive_depth):
            if part.bound >= self.limit or not tuning.few < len(part.options.name) <= tuning.dive_options:
                break
            broken, bounds = _broken(part)
            part = self.reduce(_fixed(part, broken, int(np.argmin(bounds)), float(bounds.min())))
        return self.reduce(case) if self.loss < known else case

    def probe(self, case: Case) -> Case:
        """The case reduced after a narrow merge of the options of least excess in each kind of class."""
        count, width = self.tuning.probe_options, self.tuning.probe_width
        if len(case.options.name) <= max(self.tuning.few, count):
            return case
        relaxation = relax(case)
        opened = relaxation.step == 0
        opened[least_excess(case.options, relaxation, inf, count)] = True
        self.merge(restrict(case, opened, case.bound), width)
        return self.reduce(case)

    def aspire(self, case: Case, part: float) -> Case:
        """The case after a search within `part` of the gap: a hit is the best choice, a miss raises the bound."""
        if case.bound >= self.limit or len(case.options.name) <= self.tuning.many:
            return case
        names, loss = self.names, self.loss
        bound = case.bound + part * (loss - case.bound)
        self.loss = bound
        near = self.reduce(case)
        complete = near.bound >= self.limit or self.merge(near, self.tuning.wide)
        if self.loss == bound:
            self.names, self.loss = names, loss
            bound *= 1 - PRECISION
        else:
            bound = self.loss
        return self.reduce(replace(case, bound=bound) if complete else case)

    def branch(self, case: Case, chosen: int, bounds: Floats) -> list[Case]:
        """The cases with a class fixed to each of its options that can improve on the best choice."""
        return [
            _fixed(case, chosen, j, max(case.bound, float(bounds[j])))
            for j in np.flatnonzero(bounds < self.limit).tolist()
        ]


def _broken(case: Case) -> tuple[int, Floats]:
    """The class that the relaxation breaks, and (J,) the bound with each of its options."""
    broken = relax(case).broken
    return broken, relax_each(case, broken)


def _fixed(case: Case, chosen: int, j: int, bound: float) -> Case:
    """The case with a class fixed to its option `j`."""
    keep = case.options.row != chosen
    keep[case.options.start[chosen] + j] = True
    return restrict(case, keep, bound)
