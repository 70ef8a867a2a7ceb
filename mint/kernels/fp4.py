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

from mint.kernels.compiled import LANES, MXFP4, Bytes, Floats, Words, compiled, narrow

_ZERO = np.float32(0.0)
_INFINITY = np.float32(np.inf)
_LARGEST = np.float32(6.0)  # of the fp4 table 0, 0.5, 1, 1.5, 2, 3, 4, 6


@compiled
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


@compiled
def quotients(values: Floats, group_size: int, storage: int, scratch: Floats, out: Floats) -> None:
    """Greatest magnitude of each group over 6, rounded to the weight's dtype: `values` (N,) -> `out` (G,)."""
    words, out_words = values.view(np.uint32), out.view(np.uint32)
    for i in range(out.size):
        group = words[i * group_size : (i + 1) * group_size]
        largest = np.uint32(0)
        for j in range(group_size):
            largest = max(largest, group[j] & np.uint32(0x7FFFFFFF))
        out_words[i] = largest
    for i in range(out.size):
        out[i] /= _LARGEST
    narrow(out, storage, scratch)


@compiled
def mxfp4_scales(quotient: Floats, stored: Bytes, scales: Floats) -> None:
    """The least power of two not below the quotient (G,), as a byte and as a float32; 1 for a group of zeros."""
    words, scale_words = quotient.view(np.uint32), scales.view(np.uint32)
    for i in range(quotient.size):
        word = words[i]
        power = (word + np.uint32(0x7FFFFF)) >> np.uint32(23)
        power = power if word > np.uint32(1 << 22) else np.uint32(0)  # 2^-127, the least, is a subnormal float32
        power = power if word else np.uint32(127)
        stored[i] = power
        scale_words[i] = max(power << np.uint32(23), np.uint32(1 << 22))


@compiled
def nvfp4_scales(quotient: Floats, scratch: Floats, stored: Bytes, scales: Floats) -> None:
    """The nearest e4m3 number (G,), at most 448, as a byte and as a float32: MLX's `ToFP8` and `FromFP8`."""
    words, sums, scale_words = quotient.view(np.uint32), scratch.view(np.uint32), scales.view(np.uint32)
    subnormal = np.uint32(141 << 23)  # 2^14: adding it leaves multiples of 2^-9
    for i in range(quotient.size):
        scratch[i] = quotient[i] + np.float32(2.0**14)
    for i in range(quotient.size):
        word = words[i]
        odd = (word >> np.uint32(20)) & np.uint32(1)
        byte = (word - np.uint32(120 << 23) + (np.uint32(0x7FFFF) + odd)) >> np.uint32(20)
        byte = sums[i] - subnormal if word < np.uint32(121 << 23) else byte
        byte = np.uint32(0x7E) if word >= np.uint32(543 << 21) else byte
        stored[i] = byte
        scale_words[i] = byte << np.uint32(20)
    for i in range(quotient.size):
        scales[i] *= np.float32(2.0**120)


@compiled
def group_scales(
    values: Floats, mode: int, storage: int, scratch: Floats, quotient: Floats, stored: Bytes, scales: Floats
) -> None:
    """Write the scales of (N,) weights in G groups, as bytes and as float32."""
    quotients(values, values.size // scales.size, storage, scratch, quotient)
    if mode == MXFP4:
        mxfp4_scales(quotient, stored, scales)
    else:
        nvfp4_scales(quotient, scratch, stored, scales)


@compiled
def add_errors(values: Floats, group_size: int, scales: Floats, lanes: Floats) -> None:
    """Add the squared errors of (N,) weights in G groups to the (LANES,) sums; all in float32.

    The nearest value is the sum of the table's steps over the midpoints passed: 0.5 four times, 1 twice, 2.
    """
    for i in range(scales.size):
        scale = scales[i]
        half, double = scale * np.float32(0.5), scale * np.float32(2.0)
        a, b, c, d, e, f, g = midpoints(scale)
        for start in range(i * group_size, (i + 1) * group_size, LANES):
            block = values[start : start + LANES]
            for lane in range(LANES):
                magnitude = abs(block[lane])
                nearest = half if magnitude > a else _ZERO
                nearest += half if magnitude > b else _ZERO
                nearest += half if magnitude > c else _ZERO
                nearest += half if magnitude > d else _ZERO
                nearest += scale if magnitude > e else _ZERO
                nearest += scale if magnitude > f else _ZERO
                nearest += double if magnitude > g else _ZERO
                error = nearest - magnitude
                lanes[lane] += error * error


@compiled
def write_codes(values: Floats, group_size: int, scales: Floats, codes: Words) -> None:
    """Write the codes of (N,) weights in G groups: the index in the table, plus 8 for a negative value but -0."""
    words = values.view(np.uint32)
    for i in range(scales.size):
        scale = scales[i]
        a, b, c, d, e, f, g = midpoints(scale)
        for start in range(i * group_size, (i + 1) * group_size, LANES):
            block, signs, out = (
                values[start : start + LANES],
                words[start : start + LANES],
                codes[start : start + LANES],
            )
            for lane in range(LANES):
                magnitude = abs(block[lane])
                index = np.uint32(magnitude > a) + np.uint32(magnitude > b) + np.uint32(magnitude > c)
                index += np.uint32(magnitude > d) + np.uint32(magnitude > e) + np.uint32(magnitude > f)
                index += np.uint32(magnitude > g)
                sign = (signs[lane] >> np.uint32(28)) & np.uint32(8)
                out[lane] = index | (sign if index else np.uint32(0))
