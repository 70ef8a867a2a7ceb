"""The searches in array operations: in numpy's float64 the oracle of the fused kernels, in MLX the GPU path.

The law of `search_affine` and `search_fp4` in the same order and with the same tables, one group a row, nothing fused.
Both namespaces name these operations alike; `xp` is the one to use. A candidate of NaN or infinite error is never less
than another, so it is never kept.
"""

# G groups of N weights each

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mint.formats.scheme import E2M1, MXFP4_SCHEME, NVFP4_SCHEME, Scheme

# by bits: the step between starts, how many starts, and how many passes a descent from the best of them and one beside
# it have. Found on Gaussian and Student-t weights (tools/bench/rounding.py): at 4 bits g64 NRMSE is 9.3 % less; with
# two passes beside 8.6 %, with none from the best 8.9 %, with a third descent 9.7 % for a fifth more time
SCHEDULES = {
    2: (0.09, 4, 2, 3),
    3: (0.065, 4, 2, 3),
    4: (0.045, 4, 2, 3),
    5: (0.02, 3, 2, 3),
    6: (0.01, 3, 2, 3),
    8: (0.004, 3, 2, 3),
}
# bfloat16 has too few bits to store what least squares finds for fine grids
SCHEDULES_BF16 = {**SCHEDULES, 6: (0.008, 3, 2, 2), 8: (0.0035, 3, 0, 1)}

# by kernel number: the scales that are tried, as differences from MLX's byte, and the greatest finite scale
NEIGHBOURS = {MXFP4_SCHEME.kernel: (0, -1), NVFP4_SCHEME.kernel: (0, -2, -1, 1, 2, 3, 4, 5)}
LAST_SCALE = {MXFP4_SCHEME.kernel: 254, NVFP4_SCHEME.kernel: 126}

Array = Any  # of numpy or MLX
Best = tuple[Array, Array, Array]  # error, scale and bias of each group
_MIDPOINTS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)  # of the fp4 table


def _sum(values: Array) -> Array:
    return values.sum(-1, keepdims=True)


@dataclass(frozen=True, slots=True)
class _Groups:
    """(G, N) groups of weights and their importance, and how their scales and biases (G, 1) are stored."""

    xp: Any
    values: Array
    importance: Array
    top: int  # the greatest code
    store: Callable[[Array], Array]

    def codes(self, scale: Array, bias: Array) -> Array:
        """The nearest codes; 0 where the position is NaN."""
        position = (self.values - bias) / scale
        position = self.xp.where(position > 0, position, 0)
        return self.xp.round(self.xp.where(position < self.top, position, self.top))

    def error(self, scale: Array, bias: Array) -> Array:
        difference = (self.codes(scale, bias) * scale + bias) - self.values
        return _sum(self.importance * difference * difference)

    def better(self, best: Best, scale: Array, bias: Array) -> Best:
        """The best so far or this grid, group by group."""
        error = self.error(scale, bias)
        better, where = error < best[0], self.xp.where
        return where(better, error, best[0]), where(better, scale, best[1]), where(better, bias, best[2])

    def least_squares(self, scale: Array, bias: Array) -> tuple[Array, Array]:
        """The scale of least squares for the codes of a grid, as it is stored, then the bias for that scale."""
        codes, weight = self.codes(scale, bias), self.importance
        residues = self.values - (codes * scale + bias)
        total = _sum(weight)
        mean_code = _sum(weight * codes) / total
        centred = codes - mean_code
        slope = _sum(weight * residues * centred) / _sum(weight * centred * centred)
        new_scale = self.store(scale + slope)
        mean_residue = _sum(weight * residues) / total
        return new_scale, self.store(bias + mean_residue - (new_scale - scale) * mean_code)

    def descent(self, best: Best, scale: Array, bias: Array, passes: int) -> Best:
        """The best so far or a grid on the way down from this one."""
        for left in range(passes, 0, -1):
            best = self.better(best, scale, bias)
            if left > 1:
                scale, bias = self.least_squares(scale, bias)
        return best


def search_affine(
    xp: Any,
    values: Array,
    plain: tuple[Array, Array],
    bits: int,
    dtype: str,
    store: Callable[[Array], Array],
    heights: Array | None = None,
) -> tuple[Array, Array, Array]:
    """The codes (G, N), scales and biases (G, 1) of least error for (G, N) groups of weights.

    `plain` are the scales and biases (G, 1) of `mx.quantize`; `store` rounds as the weight's `dtype` does; `heights`
    (G, N) are the importance of the weights.
    """
    top = 2**bits - 1
    step, starts, first, beside = (SCHEDULES_BF16 if dtype == "BF16" else SCHEDULES)[bits]
    groups = _Groups(xp, values, xp.ones_like(values) if heights is None else heights, top, store)
    error = groups.error(*plain)
    best = (xp.where(error < np.inf, error, np.inf), *plain)
    low, high = values.min(-1, keepdims=True), values.max(-1, keepdims=True)
    for start in range(starts):
        share = 1 - start * step
        best = groups.better(best, store((high - low) * (share / top)), store(low + (high - low) * ((1 - share) / 2)))
    best = groups.descent(best, best[1], best[2], first)
    for factor in (1 + step, 1 - step):
        scale = best[1] * factor
        bias = best[2] + (best[1] - scale) * (top / 2)
        best = groups.descent(best, store(scale), store(bias), beside)
    return groups.codes(*best[1:]), *best[1:]


def search_fp4(
    xp: Any, groups: Array, plain: Array, scheme: Scheme, unit: Array, heights: Array | None = None
) -> tuple[Array, Array]:
    """The codes (G, N) and scale bytes (G, 1) of least error; `plain` are MLX's own bytes, as integers.

    `unit` (G, 1) is what the groups were divided by.
    """
    last = LAST_SCALE[scheme.kernel]
    table, magnitudes = (xp.array(np.array(values, np.float32)) for values in (scheme.scale_values[: last + 1], E2M1))
    best_error, best_byte = xp.full(plain.shape, np.inf), plain
    for neighbour in NEIGHBOURS[scheme.kernel]:
        byte = xp.clip(plain + neighbour, 0, last)
        scale = table[byte] / unit
        difference = magnitudes[_indices(xp, groups, scale)] * scale - abs(groups)
        squares = difference * difference if heights is None else heights * difference * difference
        error = squares.sum(-1, keepdims=True)
        better = error < best_error
        best_error, best_byte = xp.where(better, error, best_error), xp.where(better, byte, best_byte)
    index = _indices(xp, groups, table[best_byte] / unit)
    return xp.where((groups < 0) & (index > 0), index + 8, index), best_byte


def _indices(xp: Any, groups: Array, scale: Array) -> Array:
    """The indices in the fp4 table of the values that are nearest to the weights' magnitudes over the scale."""
    unit = xp.where(scale > 0, scale, np.inf)
    return sum(abs(groups) > unit * midpoint for midpoint in _MIDPOINTS)
