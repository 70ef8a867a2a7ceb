"""Refines weights under the moments of their inputs: codes by coordinate descent, scales by least squares.

Compensation rounds each column once and moves its loss to later columns alone. Here every column of a group is rounded
anew with regard to all others, then the group's grid is refitted to its codes:

    E = (stored - w) H,    stored_c - E_c / H_cc is the best value of column c while all others stay

With q the values of the group's codes before scale and bias, h = H over the group and E the gradient over it, the best
changes of scale and bias solve

    (q h q)  (q h 1)     -(E q)
    (q h 1)  (1 h 1)  =  -(E 1)

and are taken, rounded to storage, where d H d^T falls. So no step makes the output worse on the inputs. nvfp4 has a
scale alone. mxfp4 keeps its scale: powers of two are too far apart.
"""

# R rows, C columns, G groups, S columns of a group

import numpy as np

from mint.formats.format import Format
from mint.kernels import affine, fp4
from mint.kernels.compiled import (
    AFFINE,
    NVFP4,
    STORAGES,
    Bytes,
    Floats,
    Numbers,
    Raw,
    compiled,
    inner,
    numbers,
    rounded,
    spread,
    widen,
)
from mint.kernels.unpack import FP4

SWEEPS = 2  # over all groups
BLOCK = 1024  # rows whose gradient is in memory
_ROUNDS = 2  # of codes and grid, at each visit of a group
_ROWS = 64  # of one piece of parallel work
_SINGULAR = np.float64(1e-5)  # of the product of the diagonal


def refine(
    weight: Raw, dtype: str, format: Format, moments: Floats, codes: Bytes, grids: Floats, threads: int | None = None
) -> None:
    """Improve the codes (R, C) and grids (R, G, 2) of raw (R, C) weights in place, under moments (C, C).

    A grid is a group's scale and bias in float32, as stored; the bias is 0 where the format has none.
    """
    size = format.group_size
    for start in range(0, len(weight), BLOCK):
        rows = slice(start, start + BLOCK)
        values = np.empty(codes[rows].shape, np.float32)
        widen(weight[rows].reshape(-1), STORAGES[dtype], values.reshape(-1))
        scales, biases = (np.repeat(grids[rows, :, part], size, axis=1) for part in (0, 1))
        levels = codes[rows].astype(np.float32) if format.scheme.has_bias else FP4[codes[rows]]
        gradient: Floats = np.asarray(scales * levels + biases - values, np.float32) @ moments
        for _ in range(SWEEPS):
            for index in range(grids.shape[1]):
                _refine_group(gradient, index, format, STORAGES[dtype], moments, codes[rows], grids[rows], threads)


def _refine_group(
    gradient: Floats,
    index: int,
    format: Format,
    storage: int,
    moments: Floats,
    codes: Bytes,
    grids: Floats,
    threads: int | None,
) -> None:
    """Improve one group in all rows, and bring their gradient (R, C) up to date."""
    group = slice(index * format.group_size, (index + 1) * format.group_size)
    own = np.ascontiguousarray(moments[group, group])
    changes = np.zeros((len(codes), format.group_size), np.float32)
    work = [
        (gradient[rows, group].copy(), index, numbers(format), storage, own, codes[rows], grids[rows], changes[rows])
        for rows in (slice(start, start + _ROWS) for start in range(0, len(codes), _ROWS))
    ]
    spread(lambda arguments: _descend(*arguments), work, threads)
    gradient += changes @ moments[group]


@compiled
def _descend(
    gradient: Floats,
    index: int,
    numbers: Numbers,
    storage: int,
    moments: Floats,
    codes: Bytes,
    grids: Floats,
    changes: Floats,
) -> None:
    """Improve group `index` of all rows, given its gradient (R, S) and moments (S, S); note what weights changed."""
    mode, bits, size = numbers
    top = np.float32((1 << bits) - 1)
    totals, levels = np.empty(size, np.float32), np.empty(size, np.float32)
    between = fp4.midpoints(np.float32(1.0))
    for i in range(size):
        totals[i] = moments[i].sum()
    for r in range(codes.shape[0]):
        own, grid, slope = codes[r, index * size : (index + 1) * size], grids[r, index], gradient[r]
        for c in range(size):
            levels[c] = np.float32(own[c]) if mode == AFFINE else FP4[own[c]]
        for _ in range(_ROUNDS):
            scale = grid[0]
            if scale == 0:
                break
            for c in range(size):
                if not moments[c, c] > 0:
                    continue
                best = levels[c] - slope[c] / (moments[c, c] * scale)
                if mode == AFFINE:
                    level = affine.nearest_code(best, top)
                    code = np.uint8(np.int32(level))
                else:
                    code = np.uint8(fp4.nearest_code(best, between))
                    level = FP4[code]
                if level != levels[c]:
                    change = (level - levels[c]) * scale
                    own[c], levels[c] = code, level
                    changes[r, c] += change
                    for j in range(size):
                        slope[j] += change * moments[c, j]
            if mode == AFFINE:
                _refit(slope, storage, moments, totals, levels, grid, changes[r])
            elif mode == NVFP4:
                _rescale(slope, moments, levels, grid, changes[r])


@inner
def _weighted(levels: Floats, moments: Floats) -> Floats:
    """The product q h of (S,) values and (S, S) moments."""
    product = np.zeros(levels.size, np.float32)
    for i in range(levels.size):
        if levels[i] != 0:
            for j in range(levels.size):
                product[j] += levels[i] * moments[i, j]
    return product


@inner
def _refit(
    slope: Floats, storage: int, moments: Floats, totals: Floats, levels: Floats, grid: Floats, changes: Floats
) -> None:
    """Change the scale and bias of one group (S,) to what suits its codes, where that pays."""
    weighted = _weighted(levels, moments)
    both, mixed, alone, first, second = 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(levels.size):
        both += weighted[j] * levels[j]
        mixed += weighted[j]
        alone += totals[j]
        first -= slope[j] * levels[j]
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
        for j in range(levels.size):
            changes[j] += np.float32(step * levels[j] + shift)
            slope[j] += np.float32(step * weighted[j] + shift * totals[j])
        grid[0], grid[1] = scale, bias


@inner
def _rescale(slope: Floats, moments: Floats, levels: Floats, grid: Floats, changes: Floats) -> None:
    """Change the scale of one group (S,) of nvfp4 to what suits its codes, where that pays."""
    weighted = _weighted(levels, moments)
    both, first = 0.0, 0.0
    for j in range(levels.size):
        both += weighted[j] * levels[j]
        first -= slope[j] * levels[j]
    best = np.float32(grid[0] + first / both) if both > 0 else np.float32(0.0)
    if not best > 0:
        return
    scale = fp4.scale_value(fp4.nvfp4_byte(best), NVFP4)
    step = np.float64(scale) - grid[0]
    if 2 * step * first - step * step * both > 0 and scale > 0:
        for j in range(levels.size):
            changes[j] += np.float32(step * levels[j])
            slope[j] += np.float32(step * weighted[j])
        grid[0] = scale
