"""The distance of two forms of one weight, block by block: no wider copy of either is ever whole.

Differences and the sums of a row are in float32, the sums over rows in float64. A sum of thousands of float32 squares
errs by about 1e-7, far below the tolerance of every check. A block fits into the cache of a core.
"""

# K rows of a block of C columns

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import sqrt

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mint.formats.units import parts_of
from mint.kernels.storage import numpy_view

BLOCK = 1 << 18  # weights at once

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
        block, needed = _wide(weight(part)), _wide(expected(part))
        if skips_zeros:
            filled = needed.any(axis=1)
            block, needed = block[filled], needed[filled]
        squared += _energy(block - needed)
        energy += _energy(needed)
    return Distance(squared, energy)


def distance_from_block(weight: Rows, slices: slice, block: mx.array) -> Distance:
    """The distance of `weight` from a block (S, R, C) of a stack, which has these slices."""
    start = slices.start
    parts = (slice(*part.indices(len(block))[:2]) for part in parts_of(block.shape, BLOCK))
    return distance_of(lambda part: weight(slice(start + part.start, start + part.stop)), block.__getitem__, parts)


def _energy(values: npt.NDArray[np.float32]) -> float:
    """The sum of the squares of (K, C) values."""
    return float(np.einsum("kc,kc->k", values, values).sum(dtype=np.float64))


def _wide(block: mx.array) -> npt.NDArray[np.float32]:
    """(..., C) floats as (K, C) float32."""
    values: npt.NDArray[np.float32] = numpy_view(block.astype(mx.float32)).reshape(-1, block.shape[-1])
    return values
