"""The error of a stored weight: the record that every kernel returns."""

# S slices (experts), F formats

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Errors:
    """The squared error of each slice in each format, in the order the formats were given."""

    squared: NDArray[np.float64]  # (S, F), sum over the slice of (dequantized(w) - w)^2
    energy: NDArray[np.float64]  # (S,), sum over the slice of w^2
    nonfinite: int  # NaN and infinite weights; above zero, the sums mean nothing
