"""Good and best choices of a knapsack's open options: a few exchanged at once, or all classes merged into states.

`mint/knapsack.py` tells how they work together.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import inf
from time import perf_counter
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mint.knapsack_relaxation import Case, Floats, Hull, Integers, Lattice, Options, Relaxation, lower_hulls, relax

# N options side by side, C classes, H steps of hulls, S states, P pairs

T = TypeVar("T", np.int64, np.float64)

CROWD = 512  # states from which on each is worth a relaxation of its own


def exchange(case: Case, relaxation: Relaxation, room: float, each: int) -> Integers:
    """(C,) The base with up to two options exchanged in each half of the classes, for the least loss that fits.

    They are taken from the `each` options of every kind of class that lift the bound least.
    """
    found = least_lifting(case.options, relaxation, room, each)
    row = np.searchsorted(case.options.start, found, "right") - 1
    half = np.unique(row, return_inverse=True)[1] % 2
    pairs, step, loss = _pairs(relaxation, found[half == 0], row[half == 0])
    order = np.argsort(step, kind="stable")
    pairs, step, loss = pairs[order], step[order], loss[order]
    least = np.minimum.accumulate(loss)
    others, step_beside, loss_beside = _pairs(relaxation, found[half == 1], row[half == 1])
    fitting = np.searchsorted(step, relaxation.left - step_beside, "right") - 1
    best = int(np.argmin(np.where(fitting >= 0, loss_beside + least[fitting], inf)))
    partner = int(np.argmin(loss[: fitting[best] + 1]))
    taken = np.concatenate([pairs[partner], others[best]])
    taken = taken[taken >= 0]
    chosen = relaxation.base.copy()
    chosen[np.searchsorted(case.options.start, taken, "right") - 1] = taken
    return chosen


def least_lifting(options: Options, relaxation: Relaxation, room: float, each: int) -> Integers:
    """The options of every kind of class that lift the bound least, the base left out."""
    lifting = np.flatnonzero((relaxation.excess <= room) & (relaxation.step != 0))
    kind = options.common[np.searchsorted(options.start, lifting, "right") - 1]
    found = []
    for k in np.flatnonzero(np.bincount(kind)).tolist():
        alike = lifting[kind == k]
        if len(alike) > each:
            alike = alike[np.argpartition(relaxation.excess[alike], each)[:each]]
        found.append(alike)
    return np.concatenate([np.empty(0, np.int64), *found])


def _pairs(relaxation: Relaxation, found: Integers, row: Integers) -> tuple[Integers, Integers, Floats]:
    """(P, 2) up to two options of different classes, -1 for none, with the bytes and the loss that they change."""
    found, row = np.append(found, -1), np.append(row, -1)
    step = relaxation.step[found]
    loss = relaxation.excess[found] - relaxation.price * step
    step[-1], loss[-1] = 0, 0.0
    a, b = _places(len(found))
    apart = (row[a] != row[b]) | (row[a] < 0)
    a, b = a[apart], b[apart]
    return np.stack([found[a], found[b]], axis=1), step[a] + step[b], loss[a] + loss[b]


@lru_cache(maxsize=256)
def _places(count: int) -> tuple[Integers, Integers]:
    """Every two places of so many, a place with itself among them."""
    a, b = np.triu_indices(count)
    return a, b


@dataclass(frozen=True, slots=True)
class Merged:
    """The best choice of the states that were kept."""

    chosen: Integers  # (C,) option of every class; the base if none was better
    complete: bool  # every choice below the limit was among them


@dataclass(slots=True)
class Patience:
    """What is left to spend on a proof: states to merge, the same on every machine, and time, which is not."""

    states: int
    deadline: float

    @property
    def over(self) -> bool:
        return self.states <= 0 or perf_counter() > self.deadline


def merge(case: Case, limit: float, width: int, patience: Patience) -> Merged:
    """Merge the classes one by one into states that can stay below the limit, at most `width` of them.

    A state is a total of steps away from the base, and how far it lifts the bound.
    """
    options, hull = case.options, lower_hulls(case.options)
    relaxation = relax(case, hull)
    price, room = relaxation.price, limit - relaxation.bound
    rests = Rests(options, hull, relaxation, limit - case.lost)
    step, lift = np.zeros(1, np.int64), np.zeros(1)
    history: list[tuple[int, int, Integers]] = []
    complete = True
    for position, i in enumerate(rests.order.tolist()):
        if patience.over:
            return Merged(relaxation.base, complete=False)
        before, here = len(step), slice(options.start[i], options.start[i + 1])
        step = np.add.outer(relaxation.step[here], step).ravel()
        lift = np.add.outer(relaxation.excess[here], lift).ravel()
        kept = np.flatnonzero(lift <= room)
        step, lift = step[kept], lift[kept]
        patience.states -= len(kept)
        order = np.argsort(step, kind="stable")  # quick: runs of rising steps, one per option
        kept, step, lift = kept[order], step[order], lift[order]
        undominated = _undominated(lift - price * step)
        kept, step, lift = kept[undominated], step[undominated], lift[undominated]
        if len(kept) > min(CROWD, width):
            bound = rests.bound(position, step, lift, room)
            promising = np.flatnonzero(bound < rests.limit)
            if len(promising) > width:
                complete = False
                promising = promising[np.sort(np.argpartition(bound[promising], width)[:width])]
            kept, step, lift = kept[promising], step[promising], lift[promising]
        history.append((i, before, kept))
    chosen = relaxation.base.copy()
    fits = np.flatnonzero(step <= relaxation.left)
    if len(fits):
        state = int(fits[np.argmin(lift[fits] - price * step[fits])])
        for i, before, kept in reversed(history):
            option, state = divmod(int(kept[state]), before)
            chosen[i] = options.start[i] + option
    return Merged(chosen, complete)


def _undominated(loss: Floats) -> NDArray[np.bool_]:
    """Of states by size, those with less loss than all before."""
    kept = np.ones(len(loss), np.bool_)
    kept[1:] = loss[1:] < np.minimum.accumulate(loss)[:-1]
    return kept


def merging_order(options: Options, relaxation: Relaxation) -> Integers:
    """The classes of rare kinds first, so that those left have one lattice; of one kind the highest excess first.

    States multiply with classes of low excess, so these come last.
    """
    excess = np.where(relaxation.step == 0, inf, relaxation.excess)
    return np.lexsort((-np.minimum.reduceat(excess, options.first), options.common))


def _tails(values: NDArray[T]) -> NDArray[T]:
    """(V,) -> (V + 1,) the sum of the values from each one on, and 0."""
    return np.concatenate([np.cumsum(values[::-1])[::-1], np.zeros(1, values.dtype)])


class Rests:
    """What the classes after each position of an order can still do."""

    def __init__(self, options: Options, hull: Hull, relaxation: Relaxation, limit: float) -> None:
        self.order = merging_order(options, relaxation)
        self.limit = limit  # of the loss of the open classes
        rank = np.empty_like(self.order)
        rank[self.order] = np.arange(len(rank))
        self._hull, self._relaxation = hull, relaxation
        self._rank_of_step = rank[hull.row]
        self._rank = np.repeat(rank, np.diff(options.start))
        self._kind = options.common[self.order]
        self._least = _tails(options.loss[options.start[1:] - 1][self.order])[1:]
        self._spent = _tails(options.size[relaxation.base][self.order])[1:]  # by the base
        self._lost = np.cumsum(options.loss[relaxation.base][self.order])  # by the base, up to each position
        self._lattice: tuple[int, Lattice] | None = None  # with the kind of class that it begins at

    def bound(self, position: int, step: Integers, lift: Floats, room: float) -> Floats:
        """(S,) the least loss of states with the classes after this position relaxed."""
        relaxation, hull = self._relaxation, self._hull
        left = self._lattice_after(position, room).lower(relaxation.left - step) + self._spent[position]
        later = self._rank_of_step > position
        size = np.concatenate([[0], np.cumsum(hull.size[later])])
        loss = _tails(hull.loss[later]) + self._least[position]
        bound: Floats = self._lost[position] + lift - relaxation.price * step + np.interp(left, size, loss, left=inf)
        return bound

    def _lattice_after(self, position: int, room: float) -> Lattice:
        """The lattice of the classes after this position, found anew where another kind of them begins."""
        kind = int(self._kind[position + 1]) if position + 1 < len(self._kind) else -1
        if not self._lattice or self._lattice[0] != kind:
            later = self._rank > position
            self._lattice = kind, Lattice.of(self._relaxation.step[later], self._relaxation.excess[later], room)
        return self._lattice[1]
