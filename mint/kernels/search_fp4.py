"""A search for the shared scales of mxfp4 and nvfp4 among the neighbours of MLX's own: same bytes, less error.

mxfp4 tries the power of two below MLX's, which clips; the one above was never better. nvfp4 tries the 8-bit floats from
two below MLX's to five above: those 4 and 5 above put the largest weight at 4 instead of 6, where the table is finer;
near zero, where 8-bit floats lie evenly, fewer steps do that. All of them take 14 % off NRMSE. Codes are the nearest
values of the table. The scale of least error is kept, MLX's own where no other is better.
"""

# N weights of LANES groups side by side, as in search_affine; row BIAS of `state` holds bytes of scales

import numpy as np

from mint.kernels.compiled import LANES, MXFP4, NVFP4, Bytes, Floats, Words, inner
from mint.kernels.fp4 import midpoints, nearest_code, scale_value
from mint.kernels.search_affine import BIAS, DOWN, SCALE, keep_plain_unless_beaten, measure_stored, remember_plain
from mint.kernels.search_arrays import LAST_SCALE, NEIGHBOURS

_MXFP4_NEIGHBOURS = np.array(NEIGHBOURS[MXFP4], np.int32)
_NVFP4_NEIGHBOURS = np.array(NEIGHBOURS[NVFP4], np.int32)
_MXFP4_LAST, _NVFP4_LAST = LAST_SCALE[MXFP4], LAST_SCALE[NVFP4]


@inner
def search_fp4(values: Floats, heights: Floats | None, mode: int, index: int, stored: Bytes, state: Floats) -> None:
    """Improve the scales of (N,) weights of LANES groups, and write their squared errors into ERROR of `state`.

    `stored` are the scales of all groups of the segment, as bytes; these are the groups at `index` of every lane.
    """
    per_lane, last = stored.size // LANES, np.int32(_MXFP4_LAST if mode == MXFP4 else _NVFP4_LAST)
    for neighbour in _MXFP4_NEIGHBOURS if mode == MXFP4 else _NVFP4_NEIGHBOURS:
        for lane in range(LANES):
            byte = min(max(np.int32(stored[lane * per_lane + index]) + neighbour, np.int32(0)), last)
            state[BIAS + lane] = np.float32(byte)
            state[SCALE + lane] = scale_value(np.uint32(byte), mode) * state[DOWN + lane]
        measure_stored(values, heights, None, state)
        if neighbour != 0:
            keep_plain_unless_beaten(state)
        remember_plain(state)
    for lane in range(LANES):
        stored[lane * per_lane + index] = np.uint8(state[BIAS + lane])


@inner
def write_fp4_codes(values: Floats, state: Floats, codes: Words) -> None:
    """Write the codes of (N,) weights for the scales of `state`."""
    for start in range(0, values.size, LANES):
        row, row_codes = values[start : start + LANES], codes[start : start + LANES]
        for lane in range(LANES):
            row_codes[lane] = nearest_code(row[lane], midpoints(state[SCALE + lane]))
