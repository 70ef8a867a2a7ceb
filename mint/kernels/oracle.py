"""The oracle that the other kernels are tested against: `mx.quantize` and `mx.dequantize`, with no cleverness.

`errors` is slow and holds a slice in float64: for tests, not for models.
"""

# S slices (experts), R rows, C columns, F formats

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mint.formats.format import Format
from mint.kernels.storage import numpy_view


@dataclass(frozen=True, slots=True)
class Errors:
    """The squared error of each slice in each format, in the order the formats were given."""

    squared: NDArray[np.float64]  # (S, F), sum over the slice of (dequantized(w) - w)^2
    energy: NDArray[np.float64]  # (S,), sum over the slice of w^2
    nonfinite: int  # NaN and infinite weights; above zero, the sums mean nothing


def joined_slices(parts: Sequence[Errors]) -> Errors:
    """The errors of a stack from those of some slices each."""
    squared, energy = (np.concatenate(arrays) for arrays in zip(*((p.squared, p.energy) for p in parts), strict=True))
    return Errors(squared, energy, sum(part.nonfinite for part in parts))


def summed(parts: Sequence[Errors]) -> Errors:
    """The errors of a matrix from those of some rows each."""
    squared, energy = (sum(arrays) for arrays in zip(*((p.squared, p.energy) for p in parts), strict=True))
    return Errors(squared, energy, sum(part.nonfinite for part in parts))


def errors(weight: mx.array, formats: Sequence[Format]) -> Errors:
    """The squared error of each slice of (S, R, C) weights in each of the F formats, summed in float64."""
    exact = numpy_view(weight.astype(mx.float32)).astype(np.float64)
    squared = np.empty((len(exact), len(formats)))
    for index, format in enumerate(formats):
        restored = numpy_view(dequantize(pack(weight, format), format)).astype(np.float64)
        squared[:, index] = np.square(restored - exact).sum((1, 2))
    return Errors(
        squared=squared,
        energy=np.square(exact).sum((1, 2)),
        nonfinite=int(np.count_nonzero(~np.isfinite(exact))),
    )


def pack(weight: mx.array, format: Format) -> tuple[mx.array, ...]:
    """Packed codes uint32 (S, R, C*bits/32), scales and, for affine formats, biases (S, R, C/group_size)."""
    return tuple(mx.quantize(weight, group_size=format.group_size, bits=format.bits, mode=format.mode))


def dequantize(packed: tuple[mx.array, ...], format: Format) -> mx.array:
    """The (S, R, C) weights that `pack` stored, in float32: scale * code + bias, not rounded to the weight's dtype."""
    codes, scales, *biases = packed
    return mx.dequantize(
        codes,
        scales.astype(mx.float32) if biases else scales,
        biases[0].astype(mx.float32) if biases else None,
        group_size=format.group_size,
        bits=format.bits,
        mode=format.mode,
        dtype=mx.float32,
    )
