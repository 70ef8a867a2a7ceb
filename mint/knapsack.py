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

*Lattice.* Sizes of models are multiples of large strides, up to a few bytes of headers. The open options then reach
no total just under most capacities, and the capacity may be lowered to the largest total in reach. It is an
inference about the exact instance, not a rounding of it; the price of the unreachable bytes leaves the gap.

*Core.* The open classes are merged one by one, largest steps first, into a list of states (size, loss) without
dominated ones. Each state is bounded by the relaxation of the classes still to come, exactly, and dropped above the
best known. If the list outgrows its width, only the most promising states are kept: then the result is a good choice
but no proof.

*Branching.* Where the core has no proof, the class with the largest spread of sizes (an embedding, mostly) is fixed
to each of its options in turn and the cases are searched, least bound first. The least bound of the cases left open
is the bound of the answer, whenever the time ends.

Rules: sizes are exact integers throughout and feasibility is never judged in floating point. Losses are float64;
"optimal" means that no choice is better by more than `PRECISION` of the loss, and only then the gap is exactly 0.
Of equal options of a class the smallest is used, then the one given first; the same input gives the same choice.
The order of classes may decide between choices of equal loss, never the loss.

Cost: N log N once per instance for N options; per capacity O(N) for the first reduction, then only open options.
Doubt: the problem is NP-hard. Instances of many equal large classes with losses that nearly balance can outlive any
time limit; they end with an honest gap.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import fsum, inf
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

# N options side by side, C classes, H steps of hulls, S states

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
T = TypeVar("T", np.int64, np.float64)

PRECISION = 1e-12  # relative; sums of a hundred thousand float64 agree to better than this
BYTES_LIMIT = 2**62  # of the spread between smallest and largest choice: sums stay within int64
PROBES = ((32, 512), (128, 2_048))  # (options of each kind, states) of quick searches for a good choice
MANY = 1_000  # open options, of which classes of rare kinds are branched on first
HOPES = (1 / 16, 1 / 4)  # parts of the gap in which a choice is hoped for, where many options are open
RARE = 2  # a kind of at most seven classes
NARROW, WIDE = 2_000, 50_000  # states of a search for a proof


class Infeasible(ValueError):  # noqa: N818, a state of the input as the field calls it
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


@dataclass(frozen=True, slots=True)
class Options:
    """Options of C classes side by side: within a class sizes rise and losses fall, strictly."""

    name: Integers  # (N,) index in the whole instance
    size: Integers  # (N,) above the smallest option of the class
    loss: Floats  # (N,)
    start: Integers  # (C + 1,) class i has the options start[i]:start[i + 1]
    common: Integers  # (C,) how often a spread of sizes like that of the class occurs, as a power of two

    @property
    def first(self) -> Integers:
        """(C,) the smallest option of every class."""
        return self.start[:-1]

    @property
    def row(self) -> Integers:
        """(N,) the class of every option."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))


@dataclass(frozen=True, slots=True)
class Hull:
    """Steps along the lower convex hulls of all classes, the most saved per byte first."""

    row: Integers  # (H,) class
    to: Integers  # (H,) option reached
    size: Integers  # (H,) bytes added
    loss: Floats  # (H,) loss saved
    slope: Floats  # (H,) loss saved per byte, falling


@dataclass(frozen=True, slots=True)
class Relaxation:
    """The relaxed optimum at a capacity."""

    price: float  # of a byte
    broken: int  # class of the step that is taken in part
    base: Integers  # (C,) option of every class
    bound: float
    step: Integers  # (N,) size of each option above that of its base
    excess: Floats  # (N,) by how much each option would lift the bound


@dataclass(frozen=True, slots=True)
class Case:
    """A part of the search: what is fixed, what is open and the capacity left for it."""

    bound: float
    fixed: Integers  # names of the options fixed
    lost: float  # their loss
    options: Options
    capacity: int  # above the smallest of the open options


class Knapsack:
    """One instance, prepared once for any number of capacities."""

    def __init__(
        self,
        sizes: Sequence[NDArray[np.int64] | Sequence[int]],
        losses: Sequence[NDArray[np.float64] | Sequence[float]],
    ) -> None:
        counts, size, loss = _checked(sizes, losses)
        self._begin = np.cumsum(counts) - counts  # where each class begins among the options as given
        self._size = size
        self._options = _pareto(counts, size, loss)
        self._hull = _hull(self._options)
        self._loss = loss
        smallest = self._options.name[self._options.first]
        self.smallest: int = sum(size[smallest].tolist())

    def solve(self, capacity: int, *, seconds: float = 10.0) -> Solution:
        """The choice of least loss within `capacity` bytes, or the best one found in `seconds` with its gap.

        Raises `Infeasible` if no choice fits.
        """
        if capacity < self.smallest:
            raise Infeasible(capacity, self.smallest)
        root = Case(-inf, np.empty(0, np.int64), 0.0, self._options, capacity - self.smallest)
        search = Search(perf_counter() + seconds)
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


def solve(
    sizes: Sequence[NDArray[np.int64] | Sequence[int]],
    losses: Sequence[NDArray[np.float64] | Sequence[float]],
    capacity: int,
    *,
    seconds: float = 10.0,
) -> Solution:
    """One option of every class with the least total loss whose total size is within `capacity`.

    Raises `Infeasible`, which names the smallest capacity, if there is none.
    """
    return Knapsack(sizes, losses).solve(capacity, seconds=seconds)


def _checked(
    sizes: Sequence[NDArray[np.int64] | Sequence[int]], losses: Sequence[NDArray[np.float64] | Sequence[float]]
) -> tuple[Integers, Integers, Floats]:
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


def _pareto(counts: Integers, size: Integers, loss: Floats) -> Options:
    """The options that are smaller or better than every other of their class."""
    row = np.repeat(np.arange(len(counts)), counts)
    column = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((len(counts), counts.max(initial=0)), inf)
    order = np.lexsort((column, loss, size, row))
    table[row, column] = loss[order]
    lowest_before = np.full_like(table, inf)
    np.minimum.accumulate(table[:, :-1], axis=1, out=lowest_before[:, 1:])
    kept = table[row, column] < lowest_before[row, column]
    name = order[kept]
    start = np.concatenate([[0], np.cumsum(np.bincount(row[kept], minlength=len(counts)))])
    size = size[name]
    spread = size - np.repeat(size[start[:-1]], np.diff(start))
    options = Options(name, spread, loss[name], start, _common(spread[start[1:] - 1]))
    if sum(spread[start[1:] - 1].tolist()) >= BYTES_LIMIT:
        raise ValueError("the sizes of all classes spread over 2^62 bytes or more; give them in a larger unit")
    return options


def _common(spread: Integers) -> Integers:
    """How many of the spreads are within about a percent of each, as a power of two rounded down."""
    _, kind, occurrences = np.unique(np.rint(64 * np.log2(spread + 1.0)), return_inverse=True, return_counts=True)
    return np.log2(occurrences[kind]).astype(np.int64)


def _hull(options: Options) -> Hull:
    """Steps along the lower convex hulls, found by dropping all points above their neighbours until none is left."""
    row = options.row
    point = np.arange(len(row))
    while True:
        inside = row[point[1:]] == row[point[:-1]]
        size, loss = np.diff(options.size[point]), -np.diff(options.loss[point])
        slope = np.divide(loss, size, out=np.full(len(size), inf), where=inside)
        above = inside[:-1] & inside[1:] & (slope[:-1] <= slope[1:])
        if not above.any():
            break
        point = np.delete(point, 1 + np.flatnonzero(above))
    steps = np.flatnonzero(inside)
    steps = steps[np.argsort(-slope[steps], kind="stable")]
    to = point[steps + 1]
    return Hull(row[to], to, size[steps], loss[steps], slope[steps])


def _relax(case: Case, hull: Hull) -> Relaxation:
    """Lagrange's bound of the case at the price where its relaxation breaks, and what each option adds to it."""
    options = case.options
    reach = np.cumsum(hull.size)
    taken = int(np.searchsorted(reach, case.capacity, "right"))
    base = options.first.copy()
    base[hull.row[:taken]] = hull.to[:taken]  # in the order of each hull, so the last step taken stays
    spent = int(reach[taken - 1]) if taken else 0
    price = float(hull.slope[taken]) if taken < len(reach) else 0.0
    bound = case.lost + fsum(options.loss[base].tolist()) - price * (case.capacity - spent)
    counts = np.diff(options.start)
    excess = options.loss - np.repeat(options.loss[base], counts)
    step = options.size - np.repeat(options.size[base], counts)
    excess += price * step
    broken = int(hull.row[taken]) if taken < len(reach) else -1
    return Relaxation(price, broken, base, max(bound, case.bound), step, excess)


def _restrict(case: Case, kept: NDArray[np.bool_], bound: float) -> Case:
    """The case with only some of its options; classes with one option are fixed."""
    options = case.options
    counts = np.add.reduceat(kept, options.first, dtype=np.int64) if len(kept) else np.empty(0, np.int64)
    lone = np.repeat(counts == 1, np.diff(options.start))
    fixed, open_ = np.flatnonzero(kept & lone), np.flatnonzero(kept & ~lone)
    common = options.common[counts > 1]
    counts = counts[counts > 1]
    start = np.concatenate([[0], np.cumsum(counts)])
    size = options.size[open_]
    smallest = size[start[:-1]]
    return Case(
        bound=bound,
        fixed=np.concatenate([case.fixed, options.name[fixed]]),
        lost=case.lost + fsum(options.loss[fixed].tolist()),
        options=Options(options.name[open_], size - np.repeat(smallest, counts), options.loss[open_], start, common),
        capacity=case.capacity - int(options.size[fixed].sum()) - int(smallest.sum()),
    )


def _stride(sizes: Integers, stride: int) -> int:
    """A stride that all sizes are nearly multiples of, at most the given one; 1 if there is none.

    Euclid's algorithm on all sizes at once; a remainder of less than a sixteenth counts as none.
    """
    while stride > 16:
        remainder = np.abs((sizes + stride // 2) % stride - stride // 2)
        large = remainder[remainder > stride // 16]
        if not len(large):
            times = (sizes + stride // 2) // stride
            return int(np.median(sizes[times > 0] // times[times > 0]))
        stride = int(large.min())
    return 1


def _furthest(off: Integers, excess: Floats, room: float) -> int:
    """The most that options can add up to off the lattice if their excess stays within `room`."""
    useful = off > 0
    off, excess = off[useful], np.maximum(excess[useful], 0)
    order = np.argsort(excess / off)
    within = int(np.searchsorted(np.cumsum(excess[order]), room, "right")) + 1  # a broken one counts as whole
    return int(off[order[:within]].sum())


@dataclass(frozen=True, slots=True)
class Lattice:
    """The multiples of a stride that totals of steps lie near."""

    stride: int
    below: int  # the furthest that a total can lie off
    above: int

    @classmethod
    def of(cls, step: Integers, excess: Floats, room: float) -> "Lattice":
        """The lattice of the steps whose excess is within `room` in all."""
        within = (excess <= room) & (step != 0)
        step, excess = step[within], excess[within]
        if not len(step):
            return cls(BYTES_LIMIT, 0, 0)
        lattices = []
        sizes = np.sort(np.abs(step))
        for first in {int(sizes[len(sizes) * part // 10]) for part in (0, 2, 5)}:
            stride = _stride(sizes, first)
            off = (step + stride // 2) % stride - stride // 2
            lattices.append(cls(stride, _furthest(-off, excess, room), _furthest(off, excess, room)))
        return max(lattices, key=lambda lattice: lattice.stride - lattice.below - lattice.above)

    def lower(self, nbytes: Any) -> Any:
        """A number of bytes, or an array of them, lowered to the largest total in reach."""
        return np.minimum(nbytes, (nbytes + self.below) // self.stride * self.stride + self.above)


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
            relaxation = _relax(case, hull)
            self.offer(case, relaxation.base)
            if relaxation.bound >= self.limit:
                break
            room = self.loss * (1 + PRECISION) - relaxation.bound
            kept = relaxation.excess <= room
            spent = int(case.options.size[relaxation.base].sum())
            lattice = Lattice.of(relaxation.step, relaxation.excess, room)
            capacity = spent + int(lattice.lower(case.capacity - spent))
            if kept.all() and capacity == case.capacity:
                return replace(case, bound=relaxation.bound)
            case = _restrict(replace(case, capacity=capacity), kept, relaxation.bound)
            hull = _hull(case.options)
        return replace(case, bound=inf)

    def probe(self, case: Case, opened: int, width: int) -> None:
        """Look for a good choice among the options of each kind of class that lift the bound least."""
        relaxation = _relax(case, _hull(case.options))
        kind = np.repeat(case.options.common, np.diff(case.options.start))
        kept = relaxation.excess <= 0
        lifting = np.flatnonzero(~kept)
        order = lifting[np.lexsort((relaxation.excess[lifting], kind[lifting]))]
        place = np.arange(len(order)) - np.searchsorted(kind[order], kind[order])
        kept[order[place < opened]] = True
        self.merge(_restrict(case, kept, relaxation.bound), width)

    def merge(self, case: Case, width: int) -> bool:
        """Merge the classes into states; tell whether all choices better than the best known were seen."""
        options, hull = case.options, _hull(case.options)
        relaxation = _relax(case, hull)
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
            case = self.reduce(case, _hull(case.options))
            for part in self.settle(case):
                heapq.heappush(heap, (part.bound, next(serial), part))
        return min(heap[0][0] if heap else inf, self.loss)

    def settle(self, case: Case) -> list[Case]:
        """What is left of a case after the cheapest way to settle it; nothing if it is proved."""
        for opened, width in PROBES:
            if case.bound < self.limit and len(case.options.name) > 4 * opened:
                self.probe(case, opened, width)
                case = self.reduce(case, _hull(case.options))
        if case.bound >= self.limit:
            return []
        for part in HOPES if len(case.options.name) > MANY else ():
            case = self.reduce(self.hope(case, part), _hull(case.options))
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
        near = self.reduce(case, _hull(case.options))
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
            part = _restrict(case, kept, case.bound)
            parts.append(self.reduce(part, _hull(part.options)))
            kept[option] = False
        return [part for part in parts if part.bound < self.limit]


def _merging_order(options: Options) -> Integers:
    """The classes of rare kinds first, so that those left have one lattice; of one kind the largest steps first."""
    return np.lexsort((-options.size[options.start[1:] - 1], options.common))


def _undominated(size: Integers, loss: Floats) -> NDArray[np.bool_]:
    """Of states by size, those with less loss than all before; of equal sizes the last of them."""
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
