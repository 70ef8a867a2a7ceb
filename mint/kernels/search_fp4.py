"""A search for the shared scales of mxfp4 and nvfp4 among the neighbours of MLX's own: same bytes, less error.

mxfp4 tries the power of two below MLX's, which clips; the one above was never better. nvfp4 tries the 8-bit floats from
two below MLX's to five above: those 4 and 5 above put the largest weight at 4 instead of 6, where the table is finer;
near zero, where 8-bit floats lie evenly, fewer steps do that. All of them take 14 % off NRMSE. Codes are the nearest
values of the table. The scale of least error is kept, MLX's own where no other is better.
"""

# N weights of LANES groups side by side, as in search_affine

import numpy as np
from numpy.typing import NDArray

from mint.kernels.compiled import LANES, MXFP4, NVFP4, Bytes, Floats, Words, compiled
from mint.kernels.fp4 import midpoints
from mint.kernels.schedules import LAST_SCALE, NEIGHBOURS
from mint.kernels.search_affine import BEST, BEST_ERROR, BEST_SCALE, DOWN, ERROR, SCALE, SQUARES, height, lanes, part

_MXFP4_NEIGHBOURS = np.array(NEIGHBOURS[MXFP4], np.int32)
_NVFP4_NEIGHBOURS = np.array(NEIGHBOURS[NVFP4], np.int32)
_MXFP4_LAST, _NVFP4_LAST = LAST_SCALE[MXFP4], LAST_SCALE[NVFP4]

Integers = NDArray[np.int32]

_ZERO = np.float32(0.0)
_INFINITY = np.float32(np.inf)


@compiled
def search_fp4(values: Floats, heights: Floats | None, mode: int, index: int, stored: Bytes, state: Floats) -> None:
    """Improve the scales of (N,) weights of LANES groups, and write their squared errors into ERROR of `state`.

    `stored` are the scales of all groups of the segment, as bytes; these are the groups at `index` of every lane.
    """
    per_lane, last = stored.size // LANES, np.int32(_MXFP4_LAST if mode == MXFP4 else _NVFP4_LAST)
    plain, best, tried = np.empty(LANES, np.int32), np.empty(LANES, np.int32), np.empty(LANES, np.int32)
    for lane in range(LANES):
        plain[lane] = best[lane] = np.int32(stored[lane * per_lane + index])
    _take(plain, mode, state)
    _measure(values, heights, state)
    for lane in range(lanes(state)):
        square = state[SQUARES + lane]
        state[BEST + lane] = square if square < _INFINITY else _INFINITY
        state[BEST_ERROR + lane] = state[ERROR + lane]
        state[BEST_SCALE + lane] = state[SCALE + lane]
    for neighbour in _MXFP4_NEIGHBOURS if mode == MXFP4 else _NVFP4_NEIGHBOURS:
        for lane in range(lanes(state)):
            tried[lane] = min(max(plain[lane] + neighbour, np.int32(0)), last)
        _take(tried, mode, state)
        _measure(values, heights, state)
        _keep_better(tried, best, state)
    for lane in range(LANES):
        state[ERROR + lane] = state[BEST_ERROR + lane]
        state[SCALE + lane] = state[BEST_SCALE + lane]
        stored[lane * per_lane + index] = np.uint8(best[lane])


@compiled
def _keep_better(tried: Integers, best: Integers, state: Floats) -> None:
    for lane in range(lanes(state)):
        square, least = state[SQUARES + lane], state[BEST + lane]
        error, best_error = state[ERROR + lane], state[BEST_ERROR + lane]
        scale, best_scale = state[SCALE + lane], state[BEST_SCALE + lane]
        byte, best_byte = tried[lane], best[lane]
        better = square < least
        state[BEST + lane] = square if better else least
        state[BEST_ERROR + lane] = error if better else best_error
        state[BEST_SCALE + lane] = scale if better else best_scale
        best[lane] = byte if better else best_byte


@compiled
def write_fp4_codes(values: Floats, state: Floats, codes: Words) -> None:
    """Write the codes of (N,) weights for the scales of `state`: the index in the table, plus 8 if negative but -0."""
    words = values.view(np.uint32)
    for start in range(0, values.size, LANES):
        row, signs, out = values[start : start + LANES], words[start : start + LANES], codes[start : start + LANES]
        for lane in range(LANES):
            magnitude = abs(row[lane])
            a, b, c, d, e, f, g = midpoints(state[SCALE + lane])
            index = np.uint32(magnitude > a) + np.uint32(magnitude > b) + np.uint32(magnitude > c)
            index += np.uint32(magnitude > d) + np.uint32(magnitude > e) + np.uint32(magnitude > f)
            index += np.uint32(magnitude > g)
            sign = (signs[lane] >> np.uint32(28)) & np.uint32(8)
            out[lane] = index | (sign if index else np.uint32(0))


@compiled
def _take(stored: Integers, mode: int, state: Floats) -> None:
    """The scales that LANES bytes mean, divided as the weights were."""
    words = state.view(np.uint32)
    for lane in range(lanes(state)):
        byte = np.uint32(stored[lane])
        power = max(byte << np.uint32(23), np.uint32(1 << 22))  # 2^-127, the least, is a subnormal float32
        words[SCALE + lane] = power if mode == MXFP4 else byte << np.uint32(20)
    shift = np.float32(1.0) if mode == MXFP4 else np.float32(2.0**120)
    for lane in range(lanes(state)):
        state[SCALE + lane] = (state[SCALE + lane] * shift) * state[DOWN + lane]


@compiled
def _measure(values: Floats, heights: Floats | None, state: Floats) -> None:
    """The squared error, with importance into SQUARES and without into ERROR; see `fp4.add_errors`."""
    for lane in range(lanes(state)):
        state[SQUARES + lane] = state[ERROR + lane] = _ZERO
    for start in range(0, values.size, 4 * LANES):
        block, block_heights = values[start : start + 4 * LANES], part(heights, start)
        for lane in range(LANES):
            scale = state[SCALE + lane]
            half, double = scale * np.float32(0.5), scale * np.float32(2.0)
            a, b, c, d, e, f, g = midpoints(scale)
            squares = error = _ZERO
            for row in range(4):
                index = row * LANES + lane
                magnitude = abs(block[index])
                nearest = half if magnitude > a else _ZERO
                nearest += half if magnitude > b else _ZERO
                nearest += half if magnitude > c else _ZERO
                nearest += half if magnitude > d else _ZERO
                nearest += scale if magnitude > e else _ZERO
                nearest += scale if magnitude > f else _ZERO
                nearest += double if magnitude > g else _ZERO
                difference = nearest - magnitude
                square = difference * difference
                error += square
                squares += height(block_heights, index) * square
            state[SQUARES + lane] += squares
            state[ERROR + lane] += error
