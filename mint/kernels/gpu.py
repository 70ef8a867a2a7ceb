"""The same errors and bytes in MLX operations, for the devices that MLX drives: Metal and CUDA.

What is measured is what the device's own `mx.quantize` writes, which may differ from the CPU's in single codes. The
device has no float64: squares are summed in float32 over runs of at most `RUN` weights, and the runs in float64 on the
host. Work goes in blocks of rows, each finished before the next begins, so that memory stays bounded; every sum belongs
to one row, so blocks change no result.

Run so far on MLX's CPU device only: no Metal or CUDA device was at hand.
"""

# S slices (experts), R rows, C columns, F formats

from collections.abc import Iterator, Sequence
from functools import partial
from math import gcd

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mint.formats import Format
from mint.kernels import reference
from mint.kernels.distortion import Errors

BLOCK_ELEMENTS = 64 << 20
RUN = 128


def errors(weight: mx.array, formats: Sequence[Format]) -> Errors:
    """The squared error of each slice of (S, R, C) weights, already evaluated, in each of the F formats."""
    slices, rows = weight.shape[:2]
    squared = np.empty((slices * rows, len(formats)))
    energy = np.empty(slices * rows)
    nonfinite = 0
    start = 0
    for block in _blocks(weight):
        here = slice(start, start + len(block))
        start = here.stop
        energy[here] = _row_sums(mx.square(block.astype(mx.float32)))
        nonfinite += int(np.array(mx.sum(~mx.isfinite(block))))
        for place, format in enumerate(formats):
            restored = reference.dequantize(reference.pack(block, format), format)
            squared[here, place] = _row_sums(_squared_difference(restored, block))
    return Errors(
        squared=squared.reshape(slices, rows, -1).sum(1) if formats else np.empty((slices, 0)),
        energy=energy.reshape(slices, rows).sum(1),
        nonfinite=nonfinite,
    )


def pack(weight: mx.array, format: Format) -> tuple[mx.array, ...]:
    """What this device's `mx.quantize` writes for (S, R, C) weights: codes, scales and, for affine formats, biases."""
    pieces = []
    for block in _blocks(weight):
        piece = reference.pack(block, format)
        mx.eval(piece)
        pieces.append(piece)
    return tuple(mx.concatenate(list(parts)).reshape(*weight.shape[:2], -1) for parts in zip(*pieces, strict=True))


def _blocks(weight: mx.array) -> Iterator[mx.array]:
    """Rows of all slices in order, as many at a time as `BLOCK_ELEMENTS` allows, at least one: (rows, C)."""
    columns = weight.shape[-1]
    rows = weight.reshape(-1, columns)
    step = max(1, BLOCK_ELEMENTS // columns)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


@partial(mx.compile, shapeless=True)
def _squared_difference(restored: mx.array, block: mx.array) -> mx.array:
    """(rows, C) in float32, in one pass and without a float32 copy of the block."""
    return mx.square(restored - block.astype(mx.float32))


def _row_sums(squares: mx.array) -> NDArray[np.float64]:
    """(rows, C) -> (rows,): float32 within a run, float64 over the runs."""
    rows, columns = squares.shape
    runs = squares.reshape(rows, -1, gcd(columns, RUN)).sum(-1)
    sums: NDArray[np.float64] = np.array(runs).sum(1, dtype=np.float64)
    return sums
