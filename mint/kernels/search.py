"""The fused kernels of `--rounding search`: a segment of weights is laid out once, and searched for every format.

A segment holds 16 lanes of 128 neighbouring weights. Laid side by side, row i is weight i of every lane, so the 16
groups of any size that begin in one row are rows in a row: `search_affine` and `search_fp4` search them together.
"""

# N weights of a chunk, F formats; a segment has ROWS rows of LANES weights

from typing import Any

import numpy as np

from mint.kernels.compiled import (
    AFFINE,
    LANES,
    SEGMENT,
    Bytes,
    Doubles,
    Floats,
    Numbers,
    Raw,
    compiled,
    inner,
    pack_codes,
    widen,
    write_raw,
)
from mint.kernels.fp4 import group_scales
from mint.kernels.search_affine import (
    BIAS,
    DOWN,
    ERROR,
    HIGH,
    LOW,
    ROWS,
    SCALE,
    TOTAL,
    UP,
    search,
    write_codes,
)
from mint.kernels.search_fp4 import search_fp4, write_fp4_codes

LENGTH = SEGMENT // LANES  # weights of a lane, a multiple of every group size
_QUARTER = 32  # rows whose extremes are kept


@compiled
def measure(raw: Raw, storage: int, table: Any, importance: Floats | None, column: int) -> Doubles:
    """The squared error of a chunk (N,) in each format, summed (F,) in float64.

    `table` (F, 3): mode, bits, group_size. `importance` (C,) of the columns; the chunk begins at `column`.
    """
    totals = np.zeros((table.shape[0], LANES), np.float64)
    segment = _segment(importance)
    row_major, values, heights, spans, state = segment
    scales, stored = np.empty(SEGMENT // 16, np.float32), np.empty(SEGMENT // 16, np.uint8)
    for start in range(0, raw.size, SEGMENT):
        piece = raw[start : start + SEGMENT]
        _lay(piece, storage, importance, column + start, segment)
        for f in range(table.shape[0]):
            mode, bits, group_size = table[f]
            groups = SEGMENT // group_size
            if mode != AFFINE:
                group_scales(row_major, mode, storage, stored[:groups], scales[:groups])
            for first in range(0, LENGTH, group_size):
                rows = slice(first * LANES, (first + group_size) * LANES)
                if mode != AFFINE:
                    search_fp4(values[rows], _part(heights, rows), mode, first // group_size, stored[:groups], state)
                else:
                    _prepare(spans, heights, first, group_size, state)
                    search(values[rows], _part(heights, rows), storage, bits, state)
                for lane in range(LANES):
                    up = np.float64(state[UP + lane])
                    totals[f, lane] += np.float64(state[ERROR + lane]) * up * up
    sums = np.zeros(table.shape[0], np.float64)
    for f in range(table.shape[0]):
        for lane in range(LANES):
            sums[f] += totals[f, lane]
    return sums


@compiled
def pack(
    raw: Raw, storage: int, numbers: Numbers, importance: Floats | None, column: int, parts: tuple[Bytes, Bytes, Bytes]
) -> None:
    """Write the codes, scales and, for affine formats, biases of a chunk (N,), all of them as bytes."""
    mode, bits, group_size = numbers
    packed, scales, biases = parts
    top = np.float32((1 << bits) - 1)
    segment = _segment(importance)
    row_major, values, heights, spans, state = segment
    side_by_side, codes = np.empty(SEGMENT, np.uint32), np.empty(SEGMENT, np.uint32)
    grids, stored = np.empty((2, SEGMENT // group_size), np.float32), np.empty(SEGMENT // group_size, np.uint8)
    per_lane = LENGTH // group_size
    for start in range(0, raw.size, SEGMENT):
        piece = raw[start : start + SEGMENT]
        _lay(piece, storage, importance, column + start, segment)
        if mode != AFFINE:
            group_scales(row_major, mode, storage, stored, grids[0])
        for index in range(per_lane):
            rows = slice(index * group_size * LANES, (index + 1) * group_size * LANES)
            if mode != AFFINE:
                search_fp4(values[rows], _part(heights, rows), mode, index, stored, state)
                write_fp4_codes(values[rows], state, side_by_side[rows])
                continue
            _prepare(spans, heights, index * group_size, group_size, state)
            search(values[rows], _part(heights, rows), storage, bits, state)
            write_codes(values[rows], top, state, side_by_side[rows])
            for lane in range(LANES):
                grids[0, lane * per_lane + index] = state[SCALE + lane] * state[UP + lane]
                grids[1, lane * per_lane + index] = state[BIAS + lane] * state[UP + lane]
        for lane in range(LANES):
            for i in range(LENGTH):
                codes[lane * LENGTH + i] = side_by_side[i * LANES + lane]
        pack_codes(codes[: piece.size], bits, packed[start * bits // 8 :])
        groups = piece.size // group_size
        group = slice(start // group_size, start // group_size + groups)
        if mode != AFFINE:
            scales[group] = stored[:groups]
        else:
            write_raw(grids[0, :groups], storage, scales.view(raw.dtype)[group])
            write_raw(grids[1, :groups], storage, biases.view(raw.dtype)[group])


@inner
def _segment(importance: Floats | None) -> Any:
    """A segment's arrays: weights in order and side by side, their importance, extremes, and the state of a search."""
    row_major, values = np.zeros(SEGMENT, np.float32), np.empty(SEGMENT, np.float32)
    spans, state = np.empty((2, SEGMENT // _QUARTER), np.float32), np.zeros(ROWS * LANES, np.float32)
    heights = None if importance is None else np.empty(SEGMENT, np.float32)
    return row_major, values, heights, spans, state


@inner
def _lay(piece: Raw, storage: int, importance: Floats | None, start: int, segment: Any) -> None:
    """Fill a segment, a short one up with zeros; its first weight is the `start`th of rows of C columns."""
    row_major, values, heights, spans, state = segment
    row_major[piece.size :] = np.float32(0.0)
    widen(piece, storage, row_major[: piece.size])
    _lay_side_by_side(row_major, state, values)
    _extremes(values, spans)
    if importance is not None and heights is not None:
        column = start % importance.size
        for lane in range(LANES):
            for i in range(LENGTH):
                heights[i * LANES + lane] = importance[column]
                column = column + 1 if column + 1 < importance.size else 0


@inner
def _part(heights: Floats | None, rows: Any) -> Any:
    return None if heights is None else heights[rows]


@inner
def _lay_side_by_side(row_major: Floats, state: Floats, values: Floats) -> None:
    """Transpose a segment, each lane divided by the power of two (UP) of its largest weight."""
    magnitudes, words = row_major.view(np.uint32), state.view(np.uint32)
    for lane in range(LANES):
        row = magnitudes[lane * LENGTH : (lane + 1) * LENGTH]
        largest = np.uint32(0)
        for i in range(LENGTH):
            largest = max(largest, row[i] & np.uint32(0x7FFFFFFF))
        power = min(max(largest >> np.uint32(23), np.uint32(1)), np.uint32(253))
        words[UP + lane] = power << np.uint32(23)
        words[DOWN + lane] = (np.uint32(254) - power) << np.uint32(23)
    for i in range(LENGTH):
        for lane in range(LANES):
            values[i * LANES + lane] = row_major[lane * LENGTH + i] * state[DOWN + lane]


@inner
def _extremes(values: Floats, spans: Floats) -> None:
    """Least and greatest weight of every quarter of a lane: (SEGMENT,) -> (2, SEGMENT / 32)."""
    for quarter in range(LENGTH // _QUARTER):
        first = quarter * _QUARTER * LANES
        low, high = spans[0, quarter * LANES :], spans[1, quarter * LANES :]
        for lane in range(LANES):
            low[lane] = high[lane] = values[first + lane]
        for start in range(first + LANES, first + _QUARTER * LANES, LANES):
            row = values[start : start + LANES]
            for lane in range(LANES):
                low[lane] = min(low[lane], row[lane])
                high[lane] = max(high[lane], row[lane])


@inner
def _prepare(spans: Floats, heights: Floats | None, first: int, group_size: int, state: Floats) -> None:
    """Set the extremes and the total importance of the groups that begin in row `first`, for the affine search."""
    begin = first // _QUARTER
    for lane in range(LANES):
        low, high = spans[0, begin * LANES + lane], spans[1, begin * LANES + lane]
        for quarter in range(begin + 1, begin + group_size // _QUARTER):
            low = min(low, spans[0, quarter * LANES + lane])
            high = max(high, spans[1, quarter * LANES + lane])
        state[LOW + lane], state[HIGH + lane] = low, high
        state[TOTAL + lane] = np.float32(group_size)
    if heights is not None:
        for lane in range(LANES):
            total = np.float32(0.0)
            for i in range(first, first + group_size):
                total += heights[i * LANES + lane]
            state[TOTAL + lane] = total
