"""Exchanges a few options of a knapsack's base, or merges all classes into states.

`mint/plan/knapsack/solve.py` gives the theory.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import inf
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from mint.plan.knapsack.bundles import Bundles, SuffixBound
from mint.plan.knapsack.relaxation import Case, Floats, Integers, Options, Relaxation, relax

# N options side by side, C classes, S states, P pairs

CROWD = 512  # states above which each is bounded by its own relaxation


def exchange(case: Case, relaxation: Relaxation, room: float, count: int) -> Integers:
    """(C,) The base with up to two options exchanged in each half of the classes, for the least loss that fits.

    Candidates are the `count` options of least excess in every kind of class.
    """
    candidates = least_excess(case.options, relaxation, room, count)
    row = np.searchsorted(case.options.start, candidates, "right") - 1
    half = np.unique(row, return_inverse=True)[1] % 2
    pairs, step, loss = _pairs(relaxation, candidates[half == 0], row[half == 0])
    order = np.argsort(step, kind="stable")
    pairs, step, loss = pairs[order], step[order], loss[order]
    least = np.minimum.accumulate(loss)
    others, step_beside, loss_beside = _pairs(relaxation, candidates[half == 1], row[half == 1])
    fitting = np.searchsorted(step, relaxation.left - step_beside, "right") - 1
    best = int(np.argmin(np.where(fitting >= 0, loss_beside + least[fitting], inf)))
    partner = int(np.argmin(loss[: fitting[best] + 1]))
    taken = np.concatenate([pairs[partner], others[best]])
    taken = taken[taken >= 0]
    chosen = relaxation.base.copy()
    chosen[np.searchsorted(case.options.start, taken, "right") - 1] = taken
    return chosen


def least_excess(options: Options, relaxation: Relaxation, room: float, count: int) -> Integers:
    """Up to `count` options of least excess in every kind of class, without the base."""
    candidates = np.flatnonzero((relaxation.excess <= room) & (relaxation.step != 0))
    kind = options.common[np.searchsorted(options.start, candidates, "right") - 1]
    chosen = [np.empty(0, np.int64)]
    for k in np.flatnonzero(np.bincount(kind)).tolist():
        alike = candidates[kind == k]
        if len(alike) > count:
            alike = alike[np.argpartition(relaxation.excess[alike], count)[:count]]
        chosen.append(alike)
    return np.concatenate(chosen)


def _pairs(relaxation: Relaxation, options: Integers, row: Integers) -> tuple[Integers, Integers, Floats]:
    """(P, 2) Up to two options of different classes, -1 for none, and how they change bytes and loss."""
    options, row = np.append(options, -1), np.append(row, -1)
    step = relaxation.step[options]
    loss = relaxation.excess[options] - relaxation.price * step
    step[-1], loss[-1] = 0, 0.0
    a, b = _index_pairs(len(options))
    apart = (row[a] != row[b]) | (row[a] < 0)
    a, b = a[apart], b[apart]
    return np.stack([options[a], options[b]], axis=1), step[a] + step[b], loss[a] + loss[b]


@lru_cache(maxsize=256)
def _index_pairs(count: int) -> tuple[Integers, Integers]:
    """Every pair of indices below `count`, including an index with itself."""
    a, b = np.triu_indices(count)
    return a, b


@dataclass(frozen=True, slots=True)
class Merged:
    """The best choice of a merge."""

    chosen: Integers  # (C,) option of every class; the base if no other was better
    complete: bool  # no choice below the limit was dropped for width or time


@dataclass(slots=True)
class ProofBudget:
    """The rest of a proof's budget: states, which are the same on every machine, and time, which is not."""

    states: int
    deadline: float

    @property
    def is_spent(self) -> bool:
        return self.states <= 0 or perf_counter() > self.deadline


def merge(case: Case, limit: float, width: int, budget: ProofBudget, *, crowd: int = CROWD) -> Merged:
    """Merge the bundles of the case into at most `width` states that can stay below the limit.

    If the best state takes two options of a class, that class gets its own bundle and the merge starts again.
    """
    options = case.options
    relaxation = relax(case)
    room = limit - relaxation.bound
    own = np.zeros(len(options.first), np.bool_)
    while True:
        bundles = Bundles.of(options, relaxation, room, own)
        taken, complete = _merge(bundles, relaxation, room, width, budget, crowd)
        row = np.searchsorted(options.start, taken, "right") - 1
        twice = np.bincount(row, minlength=len(own)) > 1
        if not twice.any():
            chosen = relaxation.base.copy()
            chosen[row] = taken
            return Merged(chosen, complete)
        own |= twice


def _merge(
    bundles: Bundles, relaxation: Relaxation, room: float, width: int, budget: ProofBudget, crowd: int
) -> tuple[Integers, bool]:
    """The options that the best state takes, and whether no state below the limit was dropped.

    A state is a total of steps from the base and its lift of the bound.
    """
    price, left = relaxation.price, relaxation.left
    suffix = SuffixBound(bundles, price, room)
    step, lift = np.zeros(1, np.int64), np.zeros(1)
    history: list[tuple[int, Integers]] = []
    complete = True
    for position in range(len(bundles.kind)):
        if budget.is_spent:
            return np.empty(0, np.int64), False
        before = len(step)
        steps, lifts = bundles.alternatives(position)
        step, lift = np.add.outer(steps, step).ravel(), np.add.outer(lifts, lift).ravel()
        survivors = np.flatnonzero(lift <= room)
        step, lift = step[survivors], lift[survivors]
        budget.states -= len(survivors)
        order = np.argsort(step, kind="stable")  # fast: rising runs, one per alternative
        survivors, step, lift = survivors[order], step[order], lift[order]
        undominated = _undominated(lift - price * step)
        survivors, step, lift = survivors[undominated], step[undominated], lift[undominated]
        if len(survivors) > min(crowd, width):
            least = lift + suffix.lift(position, left - step)
            promising = np.flatnonzero(least <= room)
            if len(promising) > width:
                complete = False
                promising = promising[np.sort(np.argpartition(least[promising], width)[:width])]
            survivors, step, lift = survivors[promising], step[promising], lift[promising]
        history.append((before, survivors))
    lift = np.where(step <= left, lift + price * (left - step), inf)
    state = int(np.argmin(lift)) if len(lift) else -1
    if state < 0 or lift[state] > room:
        return np.empty(0, np.int64), complete
    taken = [np.empty(0, np.int64)]
    for position, (before, survivors) in reversed(list(enumerate(history))):
        alternative, state = divmod(int(survivors[state]), before)
        taken.append(bundles.taken(position, alternative))
    return np.concatenate(taken), complete


def _undominated(loss: Floats) -> NDArray[np.bool_]:
    """Marks the states with less loss than all smaller ones."""
    better = np.ones(len(loss), np.bool_)
    better[1:] = loss[1:] < np.minimum.accumulate(loss)[:-1]
    return better
