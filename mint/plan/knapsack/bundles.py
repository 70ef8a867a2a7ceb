"""Bundles the open options of a knapsack: thousands of classes with equal steps become one bundle.

`mint/plan/knapsack/solve.py` gives the theory.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mint.plan.knapsack.relaxation import Floats, Integers, Lattice, Options, Relaxation

# N options side by side, C classes, A alternatives, B bundles, S states

LONGEST = 64  # alternatives in a bundle; more of the same step start another bundle


@dataclass(frozen=True, slots=True)
class Bundles:
    """Alternatives to the base in B bundles: a choice takes one alternative of each bundle, or none.

    Options with the same step from different classes form one bundle. Its alternatives are the option of least excess,
    the two of least excess, and so on. Only a class with a bundle of its own never has two options taken.
    """

    step: Integers  # (A,) in a bundle of several classes, relative to the alternative before
    excess: Floats  # (A,) likewise
    option: Integers  # (A,) option taken, likewise
    start: Integers  # (B + 1,) bundle b has the alternatives start[b]:start[b + 1]
    several: NDArray[np.bool_]  # (B,) the bundle spans several classes
    kind: Integers  # (B,) how common the classes are

    @classmethod
    def of(
        cls,
        options: Options,
        relaxation: Relaxation,
        room: float,
        own: NDArray[np.bool_],
        *,
        longest: int = LONGEST,
    ) -> "Bundles":
        """The bundles of all alternatives whose excess is at most `room`, in merge order.

        `own` (C,) marks the classes with a bundle of their own. Rare kinds of classes come first, so the rest share
        one lattice. Within a kind the highest excess comes first, because low excess multiplies states.
        """
        option = np.flatnonzero((relaxation.excess <= room) & (relaxation.step != 0))
        row = np.searchsorted(options.start, option, "right") - 1
        step, excess, kind = relaxation.step[option], np.maximum(relaxation.excess[option], 0), options.common[row]
        owner = np.where(own[row], row, -1)
        alike = kind, owner, np.where(owner < 0, step, 0)
        order = np.lexsort((excess, *reversed(alike)))
        begins = np.ones(len(order), np.bool_)
        begins[1:] = np.any([np.diff(key[order]) != 0 for key in alike], axis=0)
        option, step, excess, several = option[order], step[order], excess[order], owner[order] < 0
        begin = np.flatnonzero(begins)[np.cumsum(begins) - 1]  # (A,) first alternative of its bundle
        before = np.cumsum(excess) - excess
        within = np.flatnonzero(np.where(several, excess + before - before[begin], excess) <= room)
        begins |= several & ((np.arange(len(order)) - begin) % longest == 0)
        begins, order = begins[within], order[within]
        option, step, excess = option[within], step[within], excess[within]
        begin = np.flatnonzero(begins)
        by_rank = np.lexsort((-excess[begin], kind[order][begin]))
        rank = np.empty_like(by_rank)
        rank[by_rank] = np.arange(len(rank))
        bundle = rank[np.cumsum(begins) - 1]  # (A,)
        ranked = np.argsort(bundle, kind="stable")
        start = np.concatenate([[0], np.cumsum(np.bincount(bundle, minlength=len(begin)))])
        first = ranked[start[:-1]]
        return cls(step[ranked], excess[ranked], option[ranked], start, several[within][first], kind[order][first])

    def alternatives(self, bundle: int) -> tuple[Integers, Floats]:
        """(1 + alternatives,) steps and excess; the first entry takes nothing."""
        own = slice(self.start[bundle], self.start[bundle + 1])
        step, excess = np.append(0, self.step[own]), np.append(0.0, self.excess[own])
        return (np.cumsum(step), np.cumsum(excess)) if self.several[bundle] else (step, excess)

    def taken(self, bundle: int, alternative: int) -> Integers:
        """The options of an alternative, counted from 1; 0 takes none."""
        begin = self.start[bundle]
        end = begin + alternative
        return self.option[begin if self.several[bundle] else max(begin, end - 1) : end]


class SuffixBound:
    """A lower bound on the lift by the bundles after each position, for the bytes that are left."""

    def __init__(self, bundles: Bundles, price: float, room: float) -> None:
        self._bundles, self._price, self._room = bundles, price, room
        self._position = np.repeat(np.arange(len(bundles.kind)), np.diff(bundles.start))
        order = np.argsort(bundles.excess / np.abs(bundles.step), kind="stable")
        self._adding, self._freeing = order[bundles.step[order] > 0], order[bundles.step[order] < 0]
        self._lattices: dict[int, Lattice] = {}  # keyed by the rarest kind of class

    def lift(self, position: int, left: Integers) -> Floats:
        """(S,) The least lift of the bound by the relaxed bundles after this position, with `left` (S,) bytes.

        Used bytes lift it by their excess per byte, least first. Unused bytes lift it by their price.
        """
        lowered = self._lattice_after(position).lower(left)
        adding, freeing = (order[self._position[order] > position] for order in (self._adding, self._freeing))
        step, excess = self._bundles.step, self._bundles.excess
        reach = np.concatenate([np.cumsum(step[freeing])[::-1], [0], np.cumsum(step[adding])])
        lift = np.concatenate([np.cumsum(excess[freeing])[::-1], [0.0], np.cumsum(excess[adding])])
        unused = left - lowered + np.maximum(lowered - reach[-1], 0)
        lifts: Floats = np.interp(lowered, reach, lift, left=np.inf) + self._price * unused
        return lifts

    def _lattice_after(self, position: int) -> Lattice:
        """A lattice of the classes after this position: one for all classes at least as common as the next."""
        if position + 1 == len(self._bundles.kind):
            return Lattice.of(np.empty(0, np.int64), np.empty(0), 0.0)
        kind = int(self._bundles.kind[position + 1])
        if kind not in self._lattices:
            later = self._position >= np.searchsorted(self._bundles.kind, kind)
            self._lattices[kind] = Lattice.of(self._bundles.step[later], self._bundles.excess[later], self._room)
        return self._lattices[kind]
