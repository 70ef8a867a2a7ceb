"""Kernels of the features: the shape of every group's distribution, and the rounding error of some rows.

One pass each, in the cache. The rules of `compiled.py` hold: the same bits on every CPU and any number of threads.
"""

# N weights of a piece of a slice, G groups of it

from typing import Any

import numpy as np

from mint.formats.format import Format
from mint.kernels import affine
from mint.kernels.compiled import CHUNK, SEGMENT, STORAGES, Floats, Raw, compiled, inner, spread, widen, widened
from mint.kernels.cpu import pack
from mint.kernels.storage import numpy_view
from mint.kernels.unpack import unpack

BITS = 4  # of the rounding


def kurtoses(weight: Raw, dtype: str, group_size: int, *, threads: int | None = None) -> tuple[Floats, Floats]:
    """Of each group of contiguous raw weights: its kurtosis m4 / m2^2, and its farthest weight in sigmas, (G,) each.

    Moments are those of the group about its own mean, divided by its size. Both are 0 for a group of equal weights.
    """
    flat = weight.reshape(-1)
    kurtosis, reach = np.empty((2, flat.size // group_size), np.float32)

    def measure(start: int) -> None:
        groups = slice(start // group_size, (start + CHUNK) // group_size)
        _kurtoses(flat[start : start + CHUNK], STORAGES[dtype], group_size, kurtosis[groups], reach[groups])

    spread(measure, range(0, flat.size, CHUNK), threads)
    return kurtosis, reach


def rounding_errors(weight: Raw, dtype: str, group_size: int) -> tuple[Floats, Floats]:
    """Contiguous raw (R, C) weights as float32, and their errors after affine rounding to `BITS` bits, (R, C) each."""
    values = widened(weight.reshape(-1), dtype).reshape(weight.shape)
    format = Format("affine", BITS, group_size)
    return values, numpy_view(unpack(pack(weight[None], dtype, format), dtype, format))[0] - values


@compiled
def _kurtoses(raw: Raw, storage: int, group_size: int, kurtosis: Floats, reach: Floats) -> None:
    """Deviations are divided by the group's farthest, so that no fourth power leaves the range of float32."""
    buffer = np.empty(SEGMENT, np.float32)
    lows, highs = np.empty((3, SEGMENT // 32), np.float32), np.empty((3, SEGMENT // 32), np.float32)
    squares, fourths = np.empty(group_size, np.float32), np.empty(group_size, np.float32)
    level = group_size // 64
    for start in range(0, raw.size, SEGMENT):
        piece = raw[start : start + SEGMENT]
        values = buffer[: piece.size]
        widen(piece, storage, values)
        affine.extremes(values, lows, highs)
        for i in range(values.size // group_size):
            group, index = values[i * group_size : (i + 1) * group_size], start // group_size + i
            low, high = lows[level, i], highs[level, i]
            kurtosis[index] = reach[index] = np.float32(0.0)
            if low < high:
                middle = low + (high - low) * np.float32(0.5)
                for j in range(group_size):
                    squares[j] = group[j] - middle
                mean = middle + _sum(squares) / np.float32(group_size)
                scale = np.float32(1.0) / max(high - mean, mean - low)
                for j in range(group_size):
                    deviation = (group[j] - mean) * scale
                    square = deviation * deviation
                    squares[j] = square
                    fourths[j] = square * square
                variance = _sum(squares) / np.float32(group_size)
                kurtosis[index] = _sum(fourths) / np.float32(group_size) / (variance * variance)
                reach[index] = np.float32(1.0) / np.sqrt(variance)


@inner
def _sum(values: Floats) -> Any:
    """The sum of 2^n values, which it overwrites, in float32: half is added to half, so in one order on every CPU."""
    half = values.size // 2
    while half:
        low, high = values[:half], values[half : 2 * half]
        for j in range(half):
            low[j] += high[j]
        half //= 2
    return values[0]
