"""Refines affine weights under the moments of their inputs: codes by coordinate descent, scales by least squares.

Compensation rounds each column once and moves its loss to later columns alone. Here every column of a group is rounded
anew with regard to all others, then the group's scale and bias are refitted for its codes:

    E = (stored - w) H,    stored_c - E_c / H_cc is the best value of column c while all others stay

With the group's codes q, h = H over the group and E the gradient over it, the best changes of scale and bias solve

    (q h q)  (q h 1)     -(E q)
    (q h 1)  (1 h 1)  =  -(E 1)

and are taken, rounded to storage, where d H d^T falls. So no step makes the output worse on the inputs.
"""

# R rows, C columns, G groups, S columns of a group

import numpy as np

from mint.formats.format import Format
from mint.kernels import affine
from mint.kernels.compiled import STORAGES, Bytes, Floats, Raw, compiled, rounded, values_of
from mint.kernels.fused_rounding import ROUNDS, SWEEPS

_SINGULAR = np.float64(1e-5)  # of the product of the diagonal


def refine(weight: Raw, dtype: str, format: Format, moments: Floats, codes: Bytes, grids: Floats) -> None:
    """Improve the codes (R, C) and grids (R, G, 2) of raw (R, C) weights in place, under moments (C, C).

    A grid is a group's scale and bias in float32, as stored; the format is affine.
    """
    size = format.group_size
    scales, biases = (np.repeat(grids[..., part], size, axis=1) for part in (0, 1))
    change = scales * codes + biases - values_of(weight, dtype)
    gradient: Floats = change.astype(np.float32, copy=False) @ moments
    for _ in range(SWEEPS):
        for index in range(grids.shape[1]):
            group = slice(index * size, (index + 1) * size)
            own = np.ascontiguousarray(moments[group, group])
            changes = np.zeros((len(codes), size), np.float32)
            slopes = gradient[:, group].copy()
            _descend(slopes, index, format.bits, STORAGES[dtype], own, codes, grids, changes)
            gradient += changes @ moments[group]


@compiled
def _descend(
    gradient: Floats,
    index: int,
    bits: int,
    storage: int,
    moments: Floats,
    codes: Bytes,
    grids: Floats,
    changes: Floats,
) -> None:
    """Improve group `index` of all rows, given its gradient (R, S) and moments (S, S); note what weights changed."""
    top, size = np.float32((1 << bits) - 1), len(moments)
    totals = np.empty(size, np.float32)
    for i in range(size):
        totals[i] = moments[i].sum()
    for r in range(codes.shape[0]):
        own, grid, slope = codes[r, index * size : (index + 1) * size], grids[r, index], gradient[r]
        for _ in range(ROUNDS):
            scale = grid[0]
            if scale == 0:
                break
            inverse = np.float32(1.0) / scale
            for c in range(size):
                if not moments[c, c] > 0:
                    continue
                before = np.float32(own[c])
                best = before * scale - slope[c] / moments[c, c]
                code = affine.nearest_code(best * inverse, top)
                if code != before:
                    own[c] = np.uint8(np.int32(code))
                    change = (code - before) * scale
                    changes[r, c] += change
                    for j in range(size):
                        slope[j] += change * moments[c, j]
            _refit(slope, storage, moments, totals, own, grid, changes[r])


@compiled
def _refit(
    slope: Floats, storage: int, moments: Floats, totals: Floats, codes: Bytes, grid: Floats, changes: Floats
) -> None:
    """Change the scale and bias of one group (S,) to what suits its codes, where that pays."""
    size, weighted = codes.size, np.zeros(codes.size, np.float32)  # q h
    for i in range(size):
        if codes[i] != 0:
            code = np.float32(codes[i])
            for j in range(size):
                weighted[j] += code * moments[i, j]
    both, mixed, alone, first, second = 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(size):
        both += weighted[j] * codes[j]
        mixed += weighted[j]
        alone += totals[j]
        first -= slope[j] * codes[j]
        second -= slope[j]
    determinant = both * alone - mixed * mixed
    if not determinant > _SINGULAR * both * alone:
        return
    scale = rounded(np.float32(grid[0] + (first * alone - second * mixed) / determinant), storage)
    step = np.float64(scale) - grid[0]
    bias = rounded(np.float32(grid[1] + (second - mixed * step) / alone), storage)
    shift = np.float64(bias) - grid[1]
    gain = 2 * (step * first + shift * second) - step * step * both - 2 * step * shift * mixed - shift * shift * alone
    if gain > 0 and scale != 0:  # false for infinities too
        for j in range(size):
            changes[j] += np.float32(step * codes[j] + shift)
            slope[j] += np.float32(step * weighted[j] + shift * totals[j])
        grid[0], grid[1] = scale, bias
