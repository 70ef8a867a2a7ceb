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
from mint.kernels.fp4 import midpoints, nearest, nearest_code, scale_value
from mint.kernels.search_affine import BEST, BEST_ERROR, BEST_SCALE, DOWN, ERROR, SCALE, SQUARES, lanes
from mint.kernels.search_arrays import LAST_SCALE, NEIGHBOURS

_MXFP4_NEIGHBOURS = np.array(NEIGHBOURS[MXFP4], np.int32)
_NVFP4_NEIGHBOURS = np.array(NEIGHBOURS[NVFP4], np.int32)
_MXFP4_LAST, _NVFP4_LAST = LAST_SCALE[MXFP4], LAST_SCALE[NVFP4]

Integers = NDArray[np.int32]

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
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
    """Write the codes of (N,) weights for the scales of `state`."""
    for start in range(0, values.size, LANES):
        row, row_codes = values[start : start + LANES], codes[start : start + LANES]
        for lane in range(LANES):
            row_codes[lane] = nearest_code(row[lane], midpoints(state[SCALE + lane]))


@compiled
def _take(stored: Integers, mode: int, state: Floats) -> None:
    """The scales that LANES bytes mean, divided as the weights were."""
    for lane in range(lanes(state)):
        state[SCALE + lane] = scale_value(np.uint32(stored[lane]), mode) * state[DOWN + lane]


@compiled
def _measure(values: Floats, heights: Floats | None, state: Floats) -> None:
    """The squared error, with importance into SQUARES and without into ERROR; see `fp4.add_errors`."""
    for lane in range(lanes(state)):
        state[SQUARES + lane] = state[ERROR + lane] = _ZERO
    for start in range(0, values.size, 4 * LANES):
        block = values[start : start + 4 * LANES]
        block_heights = block if heights is None else heights[start : start + 4 * LANES]
        for lane in range(LANES):
            scale = state[SCALE + lane]
            squares = error = _ZERO
            for row in range(4):
                index = row * LANES + lane
                magnitude = abs(block[index])
                difference = nearest(magnitude, scale) - magnitude
                square = difference * difference
                error += square
                squares += (_ONE if heights is None else block_heights[index]) * square
            state[SQUARES + lane] += squares
            state[ERROR + lane] += error
