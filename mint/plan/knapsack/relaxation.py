"""Bounds of a multiple-choice knapsack: Pareto filter, lower hulls, the relaxed optimum and the lattice of totals.

`mint/plan/knapsack/solve.py` gives the theory.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from math import fsum, inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

# N options side by side, C classes, H steps of hulls

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

BYTES_LIMIT = 2**62  # of the spread between smallest and largest choice: sums stay within int64


@dataclass(frozen=True)
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

    @cached_property
    def hull(self) -> "Hull":
        """Steps along the lower convex hulls; drops points above their neighbours until none is left."""
        row = self.row
        point = np.arange(len(row))
        while True:
            inside = row[point[1:]] == row[point[:-1]]
            size, loss = np.diff(self.size[point]), -np.diff(self.loss[point])
            slope = np.divide(loss, size, out=np.full(len(size), inf), where=inside)
            above = inside[:-1] & inside[1:] & (slope[:-1] <= slope[1:])
            if not above.any():
                break
            point = np.delete(point, 1 + np.flatnonzero(above))
        steps = np.flatnonzero(inside)
        steps = steps[np.argsort(-slope[steps], kind="stable")]
        to = point[steps + 1]
        return Hull(row[to], to, size[steps], loss[steps], slope[steps], np.cumsum(size[steps]))


@dataclass(frozen=True, slots=True)
class Hull:
    """Steps along the lower convex hulls of all classes, the most saved per byte first."""

    row: Integers  # (H,) class
    to: Integers  # (H,) option reached
    size: Integers  # (H,) bytes added
    loss: Floats  # (H,) loss saved
    slope: Floats  # (H,) loss saved per byte, falling
    reach: Integers  # (H,) bytes added by the steps so far


@dataclass(frozen=True, slots=True)
class Relaxation:
    """The relaxed optimum at a capacity."""

    price: float  # of a byte
    broken: int  # class of the step taken in part; -1 for none
    base: Integers  # (C,) option of every class
    left: int  # capacity less the bytes of the base
    bound: float
    step: Integers  # (N,) size of each option above that of its base
    excess: Floats  # (N,) lift of the bound by each option


@dataclass(frozen=True, slots=True)
class Case:
    """A part of the search: the fixed options, the open options and the capacity left for these."""

    bound: float
    fixed: Integers  # names of the fixed options
    lost: float  # their loss
    options: Options
    capacity: int  # above the smallest of the open options


def pareto(counts: Integers, size: Integers, loss: Floats) -> Options:
    """The options that no other option of their class dominates in size and loss."""
    begin = np.cumsum(counts) - counts
    row = np.repeat(np.arange(len(counts)), counts)
    cell = row, np.arange(len(row)) - begin[row]
    sizes = np.full((len(counts), counts.max(initial=0)), np.iinfo(np.int64).max)
    losses = np.full(sizes.shape, inf)
    sizes[cell], losses[cell] = size, loss
    order = np.lexsort((losses, sizes))  # stable, row by row
    losses = np.take_along_axis(losses, order, axis=1)
    lowest_before = np.full_like(losses, inf)
    np.minimum.accumulate(losses[:, :-1], axis=1, out=lowest_before[:, 1:])
    optimal = (losses < lowest_before)[cell]
    name = (order + begin[:, None])[cell][optimal]
    start = np.concatenate([[0], np.cumsum(np.bincount(row[optimal], minlength=len(counts)))])
    size = size[name]
    spread = size - np.repeat(size[start[:-1]], np.diff(start))
    options = Options(name, spread, loss[name], start, _common(spread[start[1:] - 1]))
    if sum(spread[start[1:] - 1].tolist()) >= BYTES_LIMIT:
        raise ValueError("the sizes of all classes spread over 2^62 bytes or more; give them in a larger unit")
    return options


def _common(spread: Integers) -> Integers:
    """The number of spreads within about a percent of each, as a power of two rounded down."""
    _, kind, occurrences = np.unique(np.rint(64 * np.log2(spread + 1.0)), return_inverse=True, return_counts=True)
    return np.log2(occurrences[kind]).astype(np.int64)


def relax(case: Case) -> Relaxation:
    """Lagrange's bound of the case at the price where its relaxation breaks, and the excess of each option."""
    options, hull = case.options, case.options.hull
    taken = int(np.searchsorted(hull.reach, case.capacity, "right"))
    base = options.first.copy()
    base[hull.row[:taken]] = hull.to[:taken]  # in the order of each hull, so the last step taken stays
    spent = int(hull.reach[taken - 1]) if taken else 0
    price = float(hull.slope[taken]) if taken < len(hull.reach) else 0.0
    bound = case.lost + fsum(options.loss[base].tolist()) - price * (case.capacity - spent)
    counts = np.diff(options.start)
    excess = options.loss - np.repeat(options.loss[base], counts)
    step = options.size - np.repeat(options.size[base], counts)
    excess += price * step
    broken = int(hull.row[taken]) if taken < len(hull.reach) else -1
    return Relaxation(price, broken, base, case.capacity - spent, bound, step, excess)


def relax_each(case: Case, chosen: int) -> Floats:
    """The relaxed optimum with a class fixed to each of its options in turn, infinite where that does not fit."""
    options, hull = case.options, case.options.hull
    own = slice(options.start[chosen], options.start[chosen + 1])
    others = hull.row != chosen
    reach = np.concatenate([[0], np.cumsum(hull.size[others])])
    saved = np.concatenate([[0.0], np.cumsum(hull.loss[others])])
    least = case.lost + fsum(options.loss[options.first].tolist()) - float(options.loss[options.start[chosen]])
    left = case.capacity - options.size[own]
    bounds: Floats = least + options.loss[own] - np.interp(left, reach, saved, left=-inf)
    return bounds


def restrict(case: Case, keep: NDArray[np.bool_], bound: float) -> Case:
    """The case with the options that `keep` (N,) marks; classes with one option are fixed."""
    options = case.options
    counts = np.add.reduceat(keep, options.first, dtype=np.int64) if len(keep) else np.empty(0, np.int64)
    lone = np.repeat(counts == 1, np.diff(options.start))
    fixed, open_ = np.flatnonzero(keep & lone), np.flatnonzero(keep & ~lone)
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
    """A stride, at most the given one, that nearly divides all sizes; 1 if there is none.

    Euclid's algorithm on all sizes at once; a remainder below a sixteenth of the stride counts as none.
    """
    while stride > 16:
        remainder = np.abs((sizes + stride // 2) % stride - stride // 2)
        large = remainder[remainder > stride // 16]
        if not len(large):
            times = (sizes + stride // 2) // stride
            strides = np.sort(sizes[times > 0] // times[times > 0])
            return int(strides[len(strides) // 2])
        stride = int(large.min())
    return 1


def _furthest(off: Integers, excess: Floats, room: float) -> int:
    """The largest total offset from the lattice of options whose excess is at most `room` in all."""
    useful = off > 0
    off, excess = off[useful], excess[useful]
    order = np.argsort(excess / off)
    within = int(np.searchsorted(np.cumsum(excess[order]), room, "right")) + 1  # the broken option counts as whole
    return int(off[order[:within]].sum())


@dataclass(frozen=True, slots=True)
class Lattice:
    """The multiples of a stride, near which all totals of steps lie."""

    stride: int
    below: int  # largest distance of a total under its multiple
    above: int  # and over it

    @classmethod
    def of(cls, step: Integers, excess: Floats, room: float) -> "Lattice":
        """The lattice of the steps whose excess is at most `room` in all."""
        within = (excess <= room) & (step != 0)
        step, excess = step[within], np.maximum(excess[within], 0)
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
        """Bytes, a number or an array, lowered to the largest reachable total."""
        return np.minimum(nbytes, (nbytes + self.below) // self.stride * self.stride + self.above)


def snap(case: Case, relaxation: Relaxation, room: float) -> Case:
    """The case with its capacity lowered to the largest total that its lattice reaches."""
    lattice = Lattice.of(relaxation.step, relaxation.excess, room)
    capacity = case.capacity - relaxation.left + int(lattice.lower(relaxation.left))
    return case if capacity == case.capacity else replace(case, capacity=capacity)
