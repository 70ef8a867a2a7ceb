"""The multiple-choice knapsack, solved exactly: one option of every class, least loss within a capacity of bytes.

    minimise  sum_i loss[i, j_i]   subject to   sum_i size[i, j_i] <= capacity,   one j_i for every class i

The solver knows classes, options and a capacity, and nothing about models.

Theory of operation
===================

*Pareto.* An option that is no smaller and no better than another of its class is never needed. The other options have
falling loss over rising size. All classes lie in one flat array; `start` marks where each class begins.

*Relaxation.* If a class may mix two options, only its lower convex hull matters. The steps of all hulls are sorted by
loss saved per byte and taken until the capacity breaks one. The slope of that step is the price of a byte.
Lagrange's bound

    bound(price) = sum_i min_j (loss[i, j] + price * size[i, j]) - price * capacity

is then the relaxation's optimum, and `base`, the minimisers with the broken step left out, is a feasible choice.

*Reduced costs.* Option j of class i adds `loss[i, j] + price * size[i, j]` less the minimum over the class to every
bound that contains it. An option that lifts the bound above the best known loss is dropped; a class with one option
left is fixed. Options above the hull count too: they fill the budget.

*Exchanging.* Sorting pairs finds the best choice with up to two options of the base exchanged in each half of the
classes, out of the options of least excess. It closes most of the gap before the first option is dropped.

*Lattice.* Sizes of models are multiples of large strides, up to a few bytes of headers. The open options then reach
no total just under most capacities, and the capacity may be lowered to the largest reachable total. This rounds
nothing: the reduced costs bound how far totals can lie off the lattice.

*Diving, splitting.* A large class that breaks among few leaves more bytes than exchanges can fill. A dive fixes it to
its most promising option, then the next class that breaks, a few times. If the relaxation with each of its options in
turn lies well above the relaxation of the case, the case is split by these options.

*Bundling.* Of m classes with an open option of one step (bytes above the base), the best way to take k of them is to
take the k of least excess. So they are one bundle, whose alternatives are the first, the first two, and so on within
the room: thousands of near-equal classes become a few dozen bundles. Bundles ignore that a class takes only one
option. If the best state takes two, that class gets a bundle of its own and the merge starts again.

*Merging.* The bundles are merged one by one into a list of undominated states (size, excess). Bundles of rare kinds of
classes come first, then the common ones, which share a lattice. A state is dropped if its excess, plus the least lift
by the later bundles for the bytes it leaves, exceeds the best known loss. If the list outgrows its width, only the
most promising states stay: a good choice, but no proof.

*Probing, aspiration.* Where many options stay open, a narrow merge of the options of least excess finds a better
choice first. An aspiration search then looks only within a part of the gap: a hit is proved, a miss raises the bound.

*Branching.* Where merging has no proof, the class that breaks is fixed to each of its options in turn and the cases
are searched, least bound first. The least bound of the open cases bounds the answer, whenever the time ends.

Rules: sizes are exact integers throughout and feasibility is never judged in floating point. Losses are float64;
"optimal" means that no choice is better by more than `PRECISION` of the loss, and only then the gap is exactly 0.
Of equal options in a class the smallest is used, then the first; the same input gives the same choice.
The order of classes may decide between choices of equal loss, never the loss.

Cost: N log N once per instance for N options; per capacity O(N) for the first reduction, then only open options.
A merge costs the states times the alternatives of all bundles. For near-equal classes these grow with the square root
of their number.
Doubt: the problem is NP-hard. Instances of many large classes without equal steps and with losses that nearly balance
can exceed any limit; they end with an honest gap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, inf
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from mint.plan.knapsack.merge import ProofBudget
from mint.plan.knapsack.relaxation import BYTES_LIMIT, Case, Floats, Integers, pareto
from mint.plan.knapsack.search import PRECISION, Search, Tuning

STATES = 20_000_000  # limit of a proof: less than a second

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
        """The largest share of the loss that a better choice could save; exactly 0.0 if proved optimal."""
        return (self.loss - self.bound) / self.loss if self.loss > self.bound else 0.0


class Knapsack:
    """One instance, prepared once for any number of capacities."""

    def __init__(self, sizes: SizeRows, losses: LossRows, *, tuning: Tuning = Tuning()) -> None:  # noqa: B008, frozen
        counts, size, loss = _checked(sizes, losses)
        self._begin = np.cumsum(counts) - counts  # index of the first option of each class in the input
        self._size = size
        self._options = pareto(counts, size, loss)
        self._loss = loss
        self._tuning = tuning
        smallest = self._options.name[self._options.first]
        self.smallest: int = sum(size[smallest].tolist())

    def solve(self, capacity: int, *, states: int = STATES, seconds: float = 60.0) -> Solution:
        """The choice of least loss within `capacity` bytes, or the best known choice with its gap.

        A proof stops after `states`, at the same point on every machine, or after `seconds`, which depends on it.
        Raises `InfeasibleError` if no choice fits.
        """
        if capacity < self.smallest:
            raise InfeasibleError(capacity, self.smallest)
        root = Case(-inf, np.empty(0, np.int64), 0.0, self._options, min(capacity - self.smallest, BYTES_LIMIT))
        search = Search(ProofBudget(states, perf_counter() + seconds), self._tuning)
        bound = search.run(root)
        names = np.sort(search.names)  # one per class, so this is the order of classes
        loss = fsum(self._loss[names].tolist())
        proved = bound >= loss * (1 - PRECISION)
        return Solution(
            choice=tuple((names - self._begin).tolist()),
            nbytes=sum(self._size[names].tolist()),
            loss=loss,
            bound=loss if proved else bound,
        )

    def price(self, capacity: int) -> float:
        """The loss that one more byte of capacity saves in the relaxation; 0 at the largest choice."""
        hull = self._options.hull
        taken = int(np.searchsorted(hull.reach, capacity - self.smallest, "right"))
        return float(hull.slope[taken]) if taken < len(hull.slope) else 0.0


def _checked(sizes: SizeRows, losses: LossRows) -> tuple[Integers, Integers, Floats]:
    """Options per class, and flat sizes and losses; raises `ValueError` for bad input."""
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
