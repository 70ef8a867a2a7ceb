"""A search for the scales and biases whose stored weights are nearest: same bytes, same loader, less error.

`mx.quantize` spans a group from its least to its greatest weight. A narrower grid clips those few and is finer for all
others, and the scale that is stored (8 bits of mantissa in bfloat16) is not the one its codes were rounded with. The
search needs no data. Per group:

1. starts: grids about the group's middle that span all of it, then 1 - step of it, 1 - 2 step, and so on;
2. a descent from the best so far: codes to the nearest of the grid, then the scale of least squares for these codes
   and, for that scale as it is stored, the bias; and again;
3. the same descent from beside the best so far: its scale times 1 + step, then 1 - step.

Every scale and bias is rounded to the weight's dtype before it is judged, and at the end the best is kept if its error,
computed exactly as a loader will see it, is below that of `mx.quantize`'s own scale and bias: never worse, per group.

Sixteen groups are searched side by side, one a lane, so that every comparison and every division is a vector's. The
values of the lanes lie in rows of `state`, one array, since LLVM then sees that rows do not overlap. Weights are scaled
by a power of two per lane, so that no square overflows or vanishes. A division by zero or an overflow makes an error
that is not less than any other: such a candidate is never kept, and needs no branch.
"""

# N weights of LANES groups side by side: weight i of group g is values[i * LANES + g]

import numpy as np

from mint.kernels.affine import grid, nearest_code
from mint.kernels.compiled import LANES, Floats, Words, inlined, inner, rounded
from mint.kernels.fp4 import nearest
from mint.kernels.search_arrays import SCHEDULES, SCHEDULES_BF16


def _table(schedules: dict[int, tuple[float, int, int, int]]) -> Floats:
    return np.array([schedules.get(bits, (0,) * 4) for bits in range(9)], np.float32)


_SCHEDULES = np.stack([_table(SCHEDULES_BF16), _table(SCHEDULES), _table(SCHEDULES)])  # by storage, then bits

_ZERO = np.float32(0.0)
_HALF = np.float32(0.5)
_ONE = np.float32(1.0)
_INFINITY = np.float32(np.inf)

# rows of `state`. Set by the caller: the span of each group, the power of two that its weights were divided by and its
# inverse, the sum of the importance of its weights
ROWS = 21
(
    LOW, HIGH, UP, DOWN, TOTAL,
    SCALE, BIAS, INVERSE,  # the candidate
    SQUARES, RESIDUES, PRODUCTS, CODES, CODE_SQUARES,  # sums over a group: d^2, d, d * code, code, code^2
    BEST, BEST_SCALE, BEST_BIAS,
    PLAIN, PLAIN_SCALE, PLAIN_BIAS, PLAIN_ERROR,
    ERROR,  # squared error of the stored weights, without importance
) = range(0, ROWS * LANES, LANES)  # fmt: skip


@inlined
def lanes(state: Floats) -> int:
    """LANES, but unknown to LLVM: it would unroll short loops before it could make vectors of them."""
    return state.size // ROWS


@inner
def search(values: Floats, heights: Floats | None, storage: int, bits: int, state: Floats) -> None:
    """Write the best scales, biases and their errors for (N,) weights of LANES groups into `state`.

    `heights` (N,) are the importance of the weights, None where all are alike. It is sliced where it is read: through a
    function, loops would not become vectors.
    """
    top = np.float32((1 << bits) - 1)
    step, starts, first, beside = _SCHEDULES[storage, bits]
    _take_plain(storage, top, state)
    measure_stored(values, heights, top, state)
    remember_plain(state)
    for start in range(int(starts)):
        _take_span(_ONE - np.float32(start) * step, top, state)
        _store(storage, top, state)
        _judge(values, heights, top, state, None)
    _take_beside(_ONE, top, state)
    _descend(values, heights, storage, top, int(first), state)
    for factor in (_ONE + step, _ONE - step):
        _take_beside(factor, top, state)
        _store(storage, top, state)
        _descend(values, heights, storage, top, int(beside), state)
    _take_beside(_ONE, top, state)
    measure_stored(values, heights, top, state)
    keep_plain_unless_beaten(state)


@inner
def write_codes(values: Floats, top: np.float32, state: Floats, codes: Words) -> None:
    """Write the codes of (N,) weights for the scales and biases of `state`."""
    for lane in range(lanes(state)):
        state[INVERSE + lane] = _ONE / state[SCALE + lane]
    for start in range(0, values.size, 4 * LANES):
        block, block_codes = values[start : start + 4 * LANES], codes[start : start + 4 * LANES]
        for lane in range(LANES):
            bias, inverse = state[BIAS + lane], state[INVERSE + lane]
            for row in range(4):
                index = row * LANES + lane
                block_codes[index] = np.uint32(np.int32(nearest_code((block[index] - bias) * inverse, top)))


@inner
def measure_stored(values: Floats, heights: Floats | None, top: np.float32 | None, state: Floats) -> None:
    """The squared error of the stored weights, scale * code + bias, into SQUARES (with importance) and ERROR.

    `top` is None for the codes of fp4, which the compiler knows.
    """
    for lane in range(lanes(state)):
        state[INVERSE + lane] = _ONE / state[SCALE + lane]
        state[SQUARES + lane] = state[ERROR + lane] = _ZERO
    for start in range(0, values.size, 4 * LANES):
        block = values[start : start + 4 * LANES]
        block_heights = block if heights is None else heights[start : start + 4 * LANES]
        for lane in range(LANES):
            scale, bias, inverse = state[SCALE + lane], state[BIAS + lane], state[INVERSE + lane]
            squares = error = _ZERO
            for row in range(4):
                index = row * LANES + lane
                weight = block[index]
                if top is None:
                    difference = nearest(abs(weight), scale) - abs(weight)
                else:
                    difference = (nearest_code((weight - bias) * inverse, top) * scale + bias) - weight
                square = difference * difference
                error += square
                squares += (_ONE if heights is None else block_heights[index]) * square
            state[SQUARES + lane] += squares
            state[ERROR + lane] += error


@inner
def _judge(values: Floats, heights: Floats | None, top: np.float32, state: Floats, sums: bool | None) -> None:
    """Keep the candidate in the lanes where it is better; d is the distance to the code, in steps of the grid.

    The sums that least squares needs are made too unless `sums` is None, which the compiler knows.
    """
    for lane in range(lanes(state)):
        state[INVERSE + lane] = _ONE / state[SCALE + lane]
        state[SQUARES + lane] = state[RESIDUES + lane] = state[PRODUCTS + lane] = _ZERO
        state[CODES + lane] = state[CODE_SQUARES + lane] = _ZERO
    for start in range(0, values.size, 4 * LANES):
        block = values[start : start + 4 * LANES]
        block_heights = block if heights is None else heights[start : start + 4 * LANES]
        for lane in range(LANES):
            bias, inverse = state[BIAS + lane], state[INVERSE + lane]
            squares = residues = products = codes = code_squares = _ZERO
            for row in range(4):
                index = row * LANES + lane
                position = (block[index] - bias) * inverse
                code = nearest_code(position, top)
                d = position - code
                share = _ONE if heights is None else block_heights[index]
                high_d, high_code = share * d, share * code
                squares += high_d * d
                if sums is not None:
                    residues += high_d
                    products += high_d * code
                    codes += high_code
                    code_squares += high_code * code
            state[SQUARES + lane] += squares
            if sums is not None:
                state[RESIDUES + lane] += residues
                state[PRODUCTS + lane] += products
                state[CODES + lane] += codes
                state[CODE_SQUARES + lane] += code_squares
    _keep_better(state)


@inner
def _keep_better(state: Floats) -> None:
    for lane in range(lanes(state)):
        scale, bias, best = state[SCALE + lane], state[BIAS + lane], state[BEST + lane]
        best_scale, best_bias = state[BEST_SCALE + lane], state[BEST_BIAS + lane]
        error = state[SQUARES + lane] * scale * scale
        better = error < best
        state[BEST + lane] = error if better else best
        state[BEST_SCALE + lane] = scale if better else best_scale
        state[BEST_BIAS + lane] = bias if better else best_bias


@inner
def remember_plain(state: Floats) -> None:
    """Keep the candidate, whose error was just measured."""
    for lane in range(lanes(state)):
        error = state[SQUARES + lane]
        state[PLAIN + lane] = state[BEST + lane] = error if error < _INFINITY else _INFINITY
        state[PLAIN_ERROR + lane] = state[ERROR + lane]
        state[PLAIN_SCALE + lane] = state[BEST_SCALE + lane] = state[SCALE + lane]
        state[PLAIN_BIAS + lane] = state[BEST_BIAS + lane] = state[BIAS + lane]


@inner
def keep_plain_unless_beaten(state: Floats) -> None:
    """The candidate, whose error was just measured, or in each lane the remembered one if that is as good."""
    for lane in range(lanes(state)):
        scale, bias, error = state[SCALE + lane], state[BIAS + lane], state[ERROR + lane]
        plain_scale, plain_bias = state[PLAIN_SCALE + lane], state[PLAIN_BIAS + lane]
        plain_error, square, plain = state[PLAIN_ERROR + lane], state[SQUARES + lane], state[PLAIN + lane]
        better = square < plain
        state[SQUARES + lane] = square if better else plain
        state[SCALE + lane] = scale if better else plain_scale
        state[BIAS + lane] = bias if better else plain_bias
        state[ERROR + lane] = error if better else plain_error


@inner
def _descend(values: Floats, heights: Floats | None, storage: int, top: np.float32, passes: int, state: Floats) -> None:
    for _ in range(passes - 1):
        _judge(values, heights, top, state, True)
        _least_squares(storage, top, state)
    if passes:
        _judge(values, heights, top, state, None)


@inner
def _least_squares(storage: int, top: np.float32, state: Floats) -> None:
    """The scale of least squares for the codes, and the bias for that scale as it is stored.

    The scale is scale * (1 + a) with the a and b that minimize the sum of (d - a * code - b)^2.
    """
    for lane in range(lanes(state)):
        total, codes, old = state[TOTAL + lane], state[CODES + lane], state[SCALE + lane]
        spread = total * state[CODE_SQUARES + lane] - codes * codes
        a = (total * state[PRODUCTS + lane] - codes * state[RESIDUES + lane]) / spread
        scale = _stored_scale(old + old * a, state[UP + lane], state[DOWN + lane], storage, top)
        residues = old * state[RESIDUES + lane] - (scale - old) * codes
        bias = state[BIAS + lane] + residues / total
        state[SCALE + lane] = scale
        state[BIAS + lane] = rounded(bias * state[UP + lane], storage) * state[DOWN + lane]


@inner
def _take_plain(storage: int, top: np.float32, state: Floats) -> None:
    """The scale and bias that `mx.quantize` stores."""
    low, high = state[PRODUCTS : PRODUCTS + LANES], state[CODES : CODES + LANES]
    for lane in range(lanes(state)):
        state[PRODUCTS + lane] = state[LOW + lane] * state[UP + lane]
        state[CODES + lane] = state[HIGH + lane] * state[UP + lane]
    grid(low, high, top, state[SCALE : SCALE + LANES], state[BIAS : BIAS + LANES])
    for lane in range(lanes(state)):
        # as it is, whatever it may do
        scale = state[SCALE + lane] * state[DOWN + lane]
        state[SCALE + lane] = _stored_scale(scale, state[UP + lane], state[DOWN + lane], storage, _ONE)
        state[BIAS + lane] *= state[DOWN + lane]


@inner
def _take_span(share: np.float32, top: np.float32, state: Floats) -> None:
    """The grid that spans this share of the group about its middle."""
    margin = _HALF * (_ONE - share)
    for lane in range(lanes(state)):
        low, span = state[LOW + lane], state[HIGH + lane] - state[LOW + lane]
        state[SCALE + lane] = (span * share) / top
        state[BIAS + lane] = low + span * margin


@inner
def _take_beside(factor: np.float32, top: np.float32, state: Floats) -> None:
    """The best grid so far, its scale times `factor` about the middle of the grid."""
    half = _HALF * top
    for lane in range(lanes(state)):
        scale = state[BEST_SCALE + lane] * factor
        state[BIAS + lane] = state[BEST_BIAS + lane] + half * (state[BEST_SCALE + lane] - scale)
        state[SCALE + lane] = scale


@inner
def _store(storage: int, top: np.float32, state: Floats) -> None:
    """Round the candidate."""
    for lane in range(lanes(state)):
        up, down = state[UP + lane], state[DOWN + lane]
        state[SCALE + lane] = _stored_scale(state[SCALE + lane], up, down, storage, top)
        state[BIAS + lane] = rounded(state[BIAS + lane] * up, storage) * down


@inlined
def _stored_scale(scale: np.float32, up: np.float32, down: np.float32, storage: int, top: np.float32) -> np.float32:
    """The scale as it is stored; infinite where a loader's scale * code would be."""
    stored = rounded(scale * up, storage)
    return stored * down if abs(stored * top) < _INFINITY else _INFINITY
