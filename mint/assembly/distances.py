"""The distance of two forms of one weight, in float64, block by block: no wider copy of either is ever whole."""

# K rows of a block of C columns

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import sqrt

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mint.formats.units import parts_of
from mint.kernels.storage import numpy_view

BLOCK = 1 << 20  # weights at once

Rows = Callable[[slice], mx.array]  # some slices of the first axis of a weight


@dataclass(frozen=True, slots=True)
class Distance:
    """Sums of squares: of the difference of two weights, and of the expected one."""

    squared: float
    energy: float

    def __add__(self, other: "Distance") -> "Distance":
        return Distance(self.squared + other.squared, self.energy + other.energy)

    @property
    def relative(self) -> float:
        """|weight - expected|^2 / |expected|^2; without a divisor where nothing is expected."""
        return self.squared / self.energy if self.energy else self.squared

    @property
    def relative_norm(self) -> float:
        """|weight - expected| / |expected|, the same."""
        return sqrt(self.relative)


def distance_of(weight: Rows, expected: Rows, parts: Iterable[slice], *, skips_zeros: bool = False) -> Distance:
    """The distance of `weight` from `expected` over all `parts`; NaN if some values of either are not finite.

    `skips_zeros` leaves out the rows whose expected values are all zeros.
    """
    squared = energy = 0.0
    for part in parts:
        found, needed = _wide(weight(part)), _wide(expected(part))
        if skips_zeros:
            filled = needed.any(axis=1)
            found, needed = found[filled], needed[filled]
        found -= needed
        squared += float(np.vdot(found, found))
        energy += float(np.vdot(needed, needed))
    return Distance(squared, energy)


def distance_from_block(weight: Rows, slices: slice, block: mx.array) -> Distance:
    """The distance of `weight` from a block (S, R, C) of a stack, which has these slices."""
    start = slices.start
    parts = (slice(*part.indices(len(block))[:2]) for part in parts_of(block.shape, BLOCK))
    return distance_of(lambda part: weight(slice(start + part.start, start + part.stop)), block.__getitem__, parts)


def _wide(block: mx.array) -> npt.NDArray[np.float64]:
    """(..., C) floats as (K, C) float64."""
    return numpy_view(block.astype(mx.float32)).astype(np.float64).reshape(-1, block.shape[-1])
