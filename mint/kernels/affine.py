"""MLX's affine quantization, and its error, on float32 pieces that stay in the cache.

The formulas are those of `quantize` in mlx/backend/cpu/quantized.cpp (mlx 0.32.4), operation by operation. With
n = 2^bits - 1, a group's scale is (max - min) / n, then changed a little so that zero lies on the grid; the bias is the
end of the group farther from zero. Codes are round((w - bias) / scale) with the float32 scale, not the stored one.
"""

# N weights of a piece of a slice, G groups of it, LANES partial sums

import numpy as np

from mint.kernels.compiled import LANES, Floats, Words, inlined, inner, rounded

_SMALLEST_SCALE = np.float32(1e-7)
_ZERO = np.float32(0.0)
# added to a float32 in [0, 2^22], it leaves no room for a fraction: the sum is an integer, ties rounded to even
_ROUNDER = np.float32(2.0**23)


@inner
def extremes(values: Floats, lows: Floats, highs: Floats) -> None:
    """Least and greatest weight per 32, 64 and 128: `values` (N,) -> `lows`, `highs` (3, at least N/32).

    Integers in the order of the floats are compared, since LLVM turns only those reductions into vectors.
    """
    keys, low_keys, high_keys = values.view(np.int32), lows.view(np.int32), highs.view(np.int32)
    count = values.size // 32
    for i in range(count):
        group = keys[32 * i : 32 * i + 32]
        low = high = _ordered(group[0])
        for j in range(32):
            key = _ordered(group[j])
            low, high = min(low, key), max(high, key)
        low_keys[0, i], high_keys[0, i] = _ordered(low), _ordered(high)
    for level in range(1, 3):
        count //= 2
        for i in range(count):
            lows[level, i] = min(lows[level - 1, 2 * i], lows[level - 1, 2 * i + 1])
            highs[level, i] = max(highs[level - 1, 2 * i], highs[level - 1, 2 * i + 1])


@inlined
def _ordered(bits: np.int32) -> np.int32:
    """An integer in the order of the floats from a float's bits, and back."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@inner
def grid(lows: Floats, highs: Floats, top: np.float32, scales: Floats, biases: Floats) -> None:
    """The float32 scale and bias of each group (G,) whose codes are 0 to `top`."""
    for i in range(scales.size):
        low, high = lows[i], highs[i]
        from_low = abs(low) > abs(high)
        scale = (high - low) / top
        scale = scale if scale > _SMALLEST_SCALE else _SMALLEST_SCALE
        scale = scale if from_low else -scale
        edge = low if from_low else high
        steps = np.rint(edge / scale)
        scales[i] = scale if steps == _ZERO else edge / steps
        biases[i] = _ZERO if steps == _ZERO else edge


@inlined
def nearest_code(position: np.float32, top: np.float32) -> np.float32:
    """The code nearest to a position on the grid, as a float32; 0 for NaN, a zero scale under a huge constant group.

    Limits come before rounding: they are integers, so the order makes no difference.
    """
    position = position if position > _ZERO else _ZERO
    position = position if position < top else top
    return (position + _ROUNDER) - _ROUNDER


@inner
def add_errors(
    values: Floats, group_size: int, top: np.float32, storage: int, scales: Floats, biases: Floats, lanes: Floats
) -> None:
    """Add the squared errors of (N,) weights in G groups to the (LANES,) sums; all in float32.

    Scales are rounded to `storage` here; biases are weights or zero, so they are stored as they are.
    """
    for i in range(scales.size):
        scale, bias, stored = scales[i], biases[i], rounded(scales[i], storage)
        for start in range(i * group_size, (i + 1) * group_size, 2 * LANES):
            block = values[start : start + 2 * LANES]
            for lane in range(LANES):
                first, second = block[lane], block[lane + LANES]
                first_error = (nearest_code((first - bias) / scale, top) * stored + bias) - first
                second_error = (nearest_code((second - bias) / scale, top) * stored + bias) - second
                lanes[lane] += first_error * first_error + second_error * second_error


@inner
def write_codes(values: Floats, group_size: int, top: np.float32, scales: Floats, biases: Floats, codes: Words) -> None:
    """Write the codes of (N,) weights in G groups."""
    for i in range(scales.size):
        scale, bias = scales[i], biases[i]
        for start in range(i * group_size, (i + 1) * group_size, 32):
            block, block_codes = values[start : start + 32], codes[start : start + 32]
            for j in range(32):
                block_codes[j] = np.uint32(np.int32(nearest_code((block[j] - bias) / scale, top)))
