"""MLX's mxfp4 and nvfp4, and their errors, on float32 pieces that stay in the cache.

The rules are those of the fallback of `fp_quantize` in mlx/ops.cpp (mlx 0.32.4), which is what its CPU runs. A group's
scale comes from q = max|w| / 6, divided in the weight's dtype: mxfp4 stores the power of two at or above q (earlier
versions: the nearest), nvfp4 stores q as an 8-bit float (e4m3). A code is the index in the fp4 table nearest to
w / scale, the lower magnitude on a tie.

No division is made here: MLX's quotient exceeds a midpoint exactly where |w| exceeds that midpoint times the scale. The
product has at most 7 significant bits, so it is exact and a number of the weight's dtype of p bits; a greater |w| is
greater by more than 2^-p of itself, which is more than rounding the quotient to p bits can take back.

Two departures, both beyond any weight: where mxfp4's scale would be less than 2^-127, MLX's byte wraps around and means
a large one, and here it is 2^-127; where nvfp4 meets weights above 2^30, MLX cannot tell 4 from 6 in float32 and may
write a code of 0, and here it is the largest.
"""

# N weights of a piece of a slice, G groups of it, LANES partial sums

import numpy as np

from mint.kernels.compiled import LANES, MXFP4, Bytes, Floats, Words, inlined, inner, rounded

_ZERO = np.float32(0.0)
_INFINITY = np.float32(np.inf)
_LARGEST = np.float32(6.0)  # of the fp4 table 0, 0.5, 1, 1.5, 2, 3, 4, 6


@inlined
def midpoints(scale: np.float32) -> tuple[np.float32, ...]:
    """The seven midpoints of the table times the scale; a zero scale has no value but 0, so nothing passes."""
    unit = scale if scale > _ZERO else _INFINITY
    return (
        unit * np.float32(0.25),
        unit * np.float32(0.75),
        unit * np.float32(1.25),
        unit * np.float32(1.75),
        unit * np.float32(2.5),
        unit * np.float32(3.5),
        unit * np.float32(5.0),
    )


@inlined
def scale_value(byte: np.uint32, mode: int) -> np.float32:
    """The scale that a byte means: a power of two, or an 8-bit float (e4m3)."""
    if mode == MXFP4:
        # 2^-127, the least, is a subnormal float32
        power = np.uint32(byte << np.uint32(23))
        return np.uint32(power if byte else np.uint32(1 << 22)).view(np.float32)
    return np.uint32(byte << np.uint32(20)).view(np.float32) * np.float32(2.0**120)


@inlined
def _mxfp4_byte(quotient: np.float32) -> np.uint32:
    """The least power of two not below the quotient; 1 for a group of zeros."""
    word = np.float32(quotient).view(np.uint32)
    power = (word + np.uint32(0x7FFFFF)) >> np.uint32(23)
    power = power if word > np.uint32(1 << 22) else np.uint32(0)
    return power if word else np.uint32(127)


@inlined
def _nvfp4_byte(quotient: np.float32) -> np.uint32:
    """The nearest e4m3 number, at most 448: MLX's `ToFP8`."""
    word = np.float32(quotient).view(np.uint32)
    # 2^14: adding it leaves multiples of 2^-9, as subnormals are
    subnormal = np.float32(quotient + np.float32(2.0**14)).view(np.uint32) - np.uint32(141 << 23)
    odd = (word >> np.uint32(20)) & np.uint32(1)
    byte = (word - np.uint32(120 << 23) + (np.uint32(0x7FFFF) + odd)) >> np.uint32(20)
    byte = subnormal if word < np.uint32(121 << 23) else byte
    return np.uint32(0x7E) if word >= np.uint32(543 << 21) else byte


@inner
def group_scales(values: Floats, mode: int, storage: int, stored: Bytes, scales: Floats) -> None:
    """Write MLX's scales of (N,) weights in G groups, as bytes and as float32."""
    group_size = values.size // scales.size
    for i in range(scales.size):
        group = values[i * group_size : (i + 1) * group_size]
        largest = np.uint32(0)
        for j in range(group_size):
            magnitude = np.uint32(np.float32(group[j]).view(np.uint32) & np.uint32(0x7FFFFFFF))
            largest = magnitude if magnitude > largest else largest
        scales[i] = np.uint32(largest).view(np.float32)
    for i in range(scales.size):
        quotient = rounded(scales[i] / _LARGEST, storage)
        byte = _mxfp4_byte(quotient) if mode == MXFP4 else _nvfp4_byte(quotient)
        stored[i] = byte
        scales[i] = scale_value(byte, mode)


@inlined
def nearest(magnitude: np.float32, scale: np.float32) -> np.float32:
    """The value nearest to a magnitude: the sum of the table's steps over the midpoints passed, 4 of 0.5, 2 of 1, 2."""
    half, double = scale * np.float32(0.5), scale * np.float32(2.0)
    a, b, c, d, e, f, g = midpoints(scale)
    value = half if magnitude > a else _ZERO
    value += half if magnitude > b else _ZERO
    value += half if magnitude > c else _ZERO
    value += half if magnitude > d else _ZERO
    value += scale if magnitude > e else _ZERO
    value += scale if magnitude > f else _ZERO
    value += double if magnitude > g else _ZERO
    return value


@inlined
def nearest_code(weight: np.float32, between: tuple[np.float32, ...]) -> np.uint32:
    """The index of the nearest value in the table, plus 8 for a negative value but -0; `between` are the midpoints."""
    magnitude = abs(weight)
    a, b, c, d, e, f, g = between
    index = np.uint32(magnitude > a) + np.uint32(magnitude > b) + np.uint32(magnitude > c)
    index += np.uint32(magnitude > d) + np.uint32(magnitude > e) + np.uint32(magnitude > f)
    index += np.uint32(magnitude > g)
    sign = (np.float32(weight).view(np.uint32) >> np.uint32(28)) & np.uint32(8)
    return np.uint32(index | (sign if index else np.uint32(0)))


@inner
def add_errors(values: Floats, group_size: int, scales: Floats, lanes: Floats) -> None:
    """Add the squared errors of (N,) weights in G groups to the (LANES,) sums; all in float32."""
    for i in range(scales.size):
        scale = scales[i]
        for start in range(i * group_size, (i + 1) * group_size, LANES):
            block = values[start : start + LANES]
            for lane in range(LANES):
                magnitude = abs(block[lane])
                error = nearest(magnitude, scale) - magnitude
                lanes[lane] += error * error


@inner
def write_codes(values: Floats, group_size: int, scales: Floats, codes: Words) -> None:
    """Write the codes of (N,) weights in G groups."""
    for i in range(scales.size):
        between = midpoints(scales[i])
        for start in range(i * group_size, (i + 1) * group_size, LANES):
            block, block_codes = values[start : start + LANES], codes[start : start + LANES]
            for lane in range(LANES):
                block_codes[lane] = nearest_code(block[lane], between)
