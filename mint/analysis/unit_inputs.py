"""The inputs of a unit while the model runs."""

# N rows of inputs, K experts of a row, C columns

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mint.kernels.missing_outputs import Missing

Rows = npt.NDArray[np.float32]
Experts = npt.NDArray[np.int64]
FEWEST = 32  # rows of inputs; an expert with fewer keeps the searched rounding
WEIGHTS = 1 << 24  # of a matrix that are rounded at once: fewer are rounded whole


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of a unit: rows (N, C), and for a stack the experts of each row, (N, K), unless all see every row."""

    rows: Rows
    experts: Experts | None = None
    missing: Missing | None = None  # of a matrix

    def of(self, index: int) -> Rows:
        """The rows of one matrix of the stack."""
        return self.rows if self.experts is None else self.rows[(self.experts == index).any(axis=1)]
