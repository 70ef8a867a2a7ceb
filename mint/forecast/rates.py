"""The record of what a machine does in a second."""

from dataclasses import dataclass

COLUMNS = 1536  # of the matrix that is compensated to measure


@dataclass(frozen=True, slots=True)
class Rates:
    """Amounts per second: of weights, of floating-point operations, and of logits."""

    measured: float  # weights, in all formats
    packed: float  # weights
    compensated: float  # weights of a matrix with so many columns, infinite for a rounding that does not compensate
    products: float  # operations in numpy's matrix products
    factored: float  # C^3 of second moments (C, C)
    forward: float  # operations of a model on many rows
    written: float  # operations on the few rows of a text that is written
    sampled: float  # logits
    compared: float  # logits of two models
