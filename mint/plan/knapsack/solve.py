"""The multiple-choice knapsack, solved exactly: one option of every class, least loss within a capacity of bytes.

    minimise  sum_i loss[i, j_i]   subject to   sum_i size[i, j_i] <= capacity,   one j_i for every class i

It knows classes, options and a capacity; nothing of models.

Theory of operation
===================

*Pareto.* An option that is no smaller and no better than another of its class is never needed. What is left has
falling loss over rising size, and lies flat: all options of all classes one after another, `start` marks classes.

*Relaxation.* Letting a class mix two options costs only its lower convex hull. Its steps, sorted by what they save
per byte, are taken until the capacity breaks one; the slope of that step is the price of a byte. Lagrange's bound

    bound(price) = sum_i min_j (loss[i, j] + price * size[i, j]) - price * capacity

is then the relaxation's optimum, and `base`, the minimisers with the broken step left out, is a feasible choice.

*Reduced costs.* Option j of class i adds `loss[i, j] + price * size[i, j]` less the minimum over the class to every
bound it takes part in. One that lifts the bound above the best loss known can be dropped; a class with one option
left is fixed. That also holds with options above the hull, which is where a budget gets filled.

*Exchanging.* The base with its best up to two exchanges in each half of the classes, out of the options that lift the
bound least, is found by sorting pairs. It closes most of the gap before the first option is dropped.

*Lattice.* Sizes of models are multiples of large strides, up to a few bytes of headers. The open options then reach
no total just under most capacities, and the capacity may be lowered to the largest total in reach. Mostly it also
follows that a total fits exactly if its multiple fits: then multiples take the place of sizes. Both are inferences
about the exact instance, not a rounding of it: how far totals can lie off the lattice is bounded by what the reduced
costs leave room for.

*Diving, splitting.* A large class that breaks among few leaves more bytes than exchanges can fill. Fixing it to its
most promising option, and so on a few times, finds the good choices beyond. If the relaxation with each of its options
in turn lies well above the relaxation of the case, the case is split into these.

*Bundling.* Of m classes with an open option of one step (bytes above the base), the best way to take k of them is to
take the k of least excess. So they are one bundle, whose alternatives are the first, the first two, and so on as far as
the room goes: thousands of near-equal classes become a few dozen bundles. That a class with several open options takes
only one is left out; where the best state takes two, that class gets a bundle of its own and all are merged anew.

*Merging.* The bundles are merged one by one into a list of states (size, excess) without dominated ones; those of rare
kinds of classes first, then the common ones, which share a lattice. A state is dropped where its excess, with the least
that the bundles still to come can do with the bytes that it leaves, passes the best known. If the list outgrows its
width, only the most promising states stay: a good choice, but no proof.

*Probing, hoping.* Where many options stay open, a narrow merge of those that lift the bound least finds a better
choice first. Then one within a part of the gap is hoped for: finding it proves it, finding none raises the bound.

*Branching.* Where merging has no proof, the class that breaks is fixed to each of its options in turn and the cases
are searched, least bound first. The least bound of the cases left open is the bound of the answer, whenever the time
ends.

Rules: sizes are exact integers throughout and feasibility is never judged in floating point. Losses are float64;
"optimal" means that no choice is better by more than `PRECISION` of the loss, and only then the gap is exactly 0.
Of equal options of a class the smallest is used, then the one given first; the same input gives the same choice.
The order of classes may decide between choices of equal loss, never the loss.

Cost: N log N once per instance for N options; per capacity O(N) for the first reduction, then only open options.
A merge costs the states times the alternatives of all bundles: of near-equal classes, those go with the root of their
number.
Doubt: the problem is NP-hard. Instances of many large classes without equal steps and with losses that nearly balance
can outlive any limit; they end with an honest gap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, inf
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from mint.plan.knapsack.merge import Patience
from mint.plan.knapsack.relaxation import BYTES_LIMIT, Case, Floats, Integers, lower_hulls, pareto
from mint.plan.knapsack.search import PRECISION, Search

STATES = 20_000_000  # of a proof: less than a second

SizeRows = Sequence[NDArray[np.int64] | Sequence[int]]
LossRows = Sequence[NDArray[np.float64] | Sequence[float]]


class InfeasibleError(ValueError):
    """No choice fits the capacity; `smallest` is the least capacity that has one."""

    def __init__(self, capacity: int, smallest: int) -> None:
        super().__init__(f"a capacity of {capacity} bytes was given, the smallest choice needs {smallest}")
        self.smallest = smallest


@dataclass(frozen=True, slots=True)
class Solution:
    """One option chosen in every class, and how far it can be from the best."""

    choice: tuple[int, ...]  # option index per class, as given
    nbytes: int  # spent
    loss: float  # sum over classes
    bound: float  # no choice within the capacity has less loss

    @property
    def gap(self) -> float:
        """How much of the loss a better choice could save at most; 0.0 exactly if proved optimal."""
        return (self.loss - self.bound) / self.loss if self.loss > self.bound else 0.0


class Knapsack:
    """One instance, prepared once for any number of capacities."""

    def __init__(self, sizes: SizeRows, losses: LossRows) -> None:
        counts, size, loss = _checked(sizes, losses)
        self._begin = np.cumsum(counts) - counts  # where each class begins among the options as given
        self._size = size
        self._options = pareto(counts, size, loss)
        self._hull = lower_hulls(self._options)
        self._loss = loss
        smallest = self._options.name[self._options.first]
        self.smallest: int = sum(size[smallest].tolist())

    def solve(self, capacity: int, *, states: int = STATES, seconds: float = 60.0) -> Solution:
        """The choice of least loss within `capacity` bytes, or the best one found with its gap.

        A proof that needs more than `states` is given up, at the same point on every machine; so is one that takes
        longer than `seconds`, which is not. Raises `InfeasibleError` if no choice fits.
        """
        if capacity < self.smallest:
            raise InfeasibleError(capacity, self.smallest)
        root = Case(-inf, np.empty(0, np.int64), 0.0, self._options, min(capacity - self.smallest, BYTES_LIMIT))
        search = Search(Patience(states, perf_counter() + seconds))
        bound = search.run(root, self._hull)
        names = np.sort(search.names)  # one a class, so this is the order of classes
        loss = fsum(self._loss[names].tolist())
        proved = bound >= loss * (1 - PRECISION)
        return Solution(
            choice=tuple((names - self._begin).tolist()),
            nbytes=sum(self._size[names].tolist()),
            loss=loss,
            bound=loss if proved else bound,
        )

    def price(self, capacity: int) -> float:
        """The loss that one more byte of capacity saves in the relaxation; 0 where everything is bought."""
        taken = int(np.searchsorted(self._hull.reach, capacity - self.smallest, "right"))
        return float(self._hull.slope[taken]) if taken < len(self._hull.slope) else 0.0


def solve(sizes: SizeRows, losses: LossRows, capacity: int, *, seconds: float = 60.0) -> Solution:
    """One option of every class with the least total loss whose total size is within `capacity`.

    Raises `InfeasibleError`, which names the smallest capacity, if there is none.
    """
    return Knapsack(sizes, losses).solve(capacity, seconds=seconds)


def _checked(sizes: SizeRows, losses: LossRows) -> tuple[Integers, Integers, Floats]:
    """Options per class, and all sizes and losses one after another; raises `ValueError` for what is none."""
    if len(sizes) != len(losses):
        raise ValueError(f"{len(sizes)} classes of sizes but {len(losses)} of losses; give one of each per class")
    counts = np.array([len(row) for row in sizes], np.int64)
    for i in range(len(sizes)):
        if not 0 < len(sizes[i]) == len(losses[i]):
            raise ValueError(
                f"class {i} has {len(sizes[i])} sizes and {len(losses[i])} losses; it needs one of each per option, "
                "and at least one option"
            )
    if not len(sizes):
        return counts, np.empty(0, np.int64), np.empty(0)
    size = np.concatenate([np.asarray(row) for row in sizes])
    loss = np.concatenate([np.asarray(row, np.float64) for row in losses])
    if size.dtype.kind not in "iu" or size.min() < 0 or size.max() >= BYTES_LIMIT:
        raise ValueError(
            f"sizes must be whole bytes from 0 to 2^62; found {size.dtype} from {size.min()} to {size.max()}"
        )
    bad = np.flatnonzero(~(np.isfinite(loss) & (loss >= 0)))
    if len(bad):
        row = int(np.searchsorted(np.cumsum(counts), bad[0], "right"))
        raise ValueError(f"losses must be finite and not negative; class {row} has {loss[bad[0]]}")
    return counts, size.astype(np.int64), loss
