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

    Four minima and maxima run side by side, as selections without branches: neither waits for the other, and no branch
    is guessed wrongly.
    """
    count = values.size // 32
    for i in range(count):
        group = values[32 * i : 32 * i + 32]
        low_a = low_b = low_c = low_d = high_a = high_b = high_c = high_d = group[0]
        for j in range(0, 32, 4):
            a, b, c, d = group[j], group[j + 1], group[j + 2], group[j + 3]
            low_a, high_a = _lower(a, low_a), _higher(a, high_a)
            low_b, high_b = _lower(b, low_b), _higher(b, high_b)
            low_c, high_c = _lower(c, low_c), _higher(c, high_c)
            low_d, high_d = _lower(d, low_d), _higher(d, high_d)
        lows[0, i] = _lower(_lower(low_a, low_b), _lower(low_c, low_d))
        highs[0, i] = _higher(_higher(high_a, high_b), _higher(high_c, high_d))
    for level in range(1, 3):
        count //= 2
        for i in range(count):
            lows[level, i] = _lower(lows[level - 1, 2 * i], lows[level - 1, 2 * i + 1])
            highs[level, i] = _higher(highs[level - 1, 2 * i], highs[level - 1, 2 * i + 1])


@inlined
def _lower(one: np.float32, other: np.float32) -> np.float32:
    return one if one < other else other


@inlined
def _higher(one: np.float32, other: np.float32) -> np.float32:
    return one if one > other else other


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
