"""Good and best choices of a knapsack's open options: a few exchanged at once, or all classes merged into states.

`mint/plan/knapsack/solve.py` tells how they work together.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import inf
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from mint.plan.knapsack.bundles import Bundles, Rests
from mint.plan.knapsack.relaxation import Case, Floats, Integers, Options, Relaxation, lower_hulls, relax

# N options side by side, C classes, S states, P pairs

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
    """Merge the bundles of the case into states that can stay below the limit, at most `width` of them.

    A class of which the best state takes two options gets a bundle of its own, and all are merged anew.
    """
    options = case.options
    relaxation = relax(case, lower_hulls(options))
    room = limit - relaxation.bound
    own = np.zeros(len(options.first), np.bool_)
    while True:
        bundles = Bundles.of(options, relaxation, room, own)
        taken, complete = _merge(bundles, relaxation, room, width, patience)
        row = np.searchsorted(options.start, taken, "right") - 1
        twice = np.bincount(row, minlength=len(own)) > 1
        if not twice.any():
            chosen = relaxation.base.copy()
            chosen[row] = taken
            return Merged(chosen, complete)
        own |= twice


def _merge(
    bundles: Bundles, relaxation: Relaxation, room: float, width: int, patience: Patience
) -> tuple[Integers, bool]:
    """The options that the best state below the limit takes, and whether all such states were among those kept.

    A state is a total of steps away from the base, and how far it lifts the bound.
    """
    price, left = relaxation.price, relaxation.left
    rests = Rests(bundles, price, room)
    step, lift = np.zeros(1, np.int64), np.zeros(1)
    history: list[tuple[int, Integers]] = []
    complete = True
    for position in range(len(bundles.kind)):
        if patience.over:
            return np.empty(0, np.int64), False
        before = len(step)
        steps, lifts = bundles.alternatives(position)
        step, lift = np.add.outer(steps, step).ravel(), np.add.outer(lifts, lift).ravel()
        kept = np.flatnonzero(lift <= room)
        step, lift = step[kept], lift[kept]
        patience.states -= len(kept)
        order = np.argsort(step, kind="stable")  # quick: runs of rising steps, one per alternative
        kept, step, lift = kept[order], step[order], lift[order]
        undominated = _undominated(lift - price * step)
        kept, step, lift = kept[undominated], step[undominated], lift[undominated]
        if len(kept) > min(CROWD, width):
            least = lift + rests.lift(position, left - step)
            promising = np.flatnonzero(least <= room)
            if len(promising) > width:
                complete = False
                promising = promising[np.sort(np.argpartition(least[promising], width)[:width])]
            kept, step, lift = kept[promising], step[promising], lift[promising]
        history.append((before, kept))
    lift = np.where(step <= left, lift + price * (left - step), inf)
    state = int(np.argmin(lift)) if len(lift) else -1
    if state < 0 or lift[state] > room:
        return np.empty(0, np.int64), complete
    taken = [np.empty(0, np.int64)]
    for position, (before, kept) in reversed(list(enumerate(history))):
        alternative, state = divmod(int(kept[state]), before)
        taken.append(bundles.taken(position, alternative))
    return np.concatenate(taken), complete


def _undominated(loss: Floats) -> NDArray[np.bool_]:
    """Of states by size, those with less loss than all before."""
    kept = np.ones(len(loss), np.bool_)
    kept[1:] = loss[1:] < np.minimum.accumulate(loss)[:-1]
    return kept
