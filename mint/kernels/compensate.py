"""Error-compensating rounding into MLX's formats: later columns compensate the rounding error of each column.

With H the second moments of a layer's inputs x, the output of a row of weights is off by d x with an expected square of
d H d^T, d being what storing it changed. Columns are rounded one after another (GPTQ, arXiv 2210.17323):

    H = V V^T with V upper triangular, U = V^-1
    e = (w_c - stored_c) / U_cc,    w_j -= e U_cj for all j > c

and e^2 is what column c adds to d H d^T, whatever comes later. So 1 / U_cc^2 is how much the error of a column counts,
and with that importance each group's scale and bias are searched (see `search_affine`) when its turn comes, on the
weights as they are then. Same bytes, same loader.

What T rows of inputs say of C columns is believed as far as it goes: H is drawn towards its diagonal by C / (T + C),
and a small share of its mean diagonal is added, so that directions that were not seen count too. Measured on inputs
that took no part, this halves the harm of few rows against the usual damping, and with a quarter as many rows as
columns the output is still nearer than without compensation.

At last the codes, scales and biases of affine formats are refined under H (`refine.py`).

The search is exact on every machine; products of matrices are the BLAS's, and equal on one machine.
"""

# T rows of inputs, R rows, C columns, G groups, B columns of a block

from dataclasses import dataclass
from math import frexp, inf
from typing import Any, Self

import numpy as np

from mint.formats.format import Format
from mint.kernels import affine, fp4
from mint.kernels.blas import single_threaded_products
from mint.kernels.compiled import (
    AFFINE,
    STORAGES,
    Bytes,
    Doubles,
    Floats,
    Numbers,
    Raw,
    Words,
    compiled,
    numbers,
    pack_codes,
    scale_values,
    spread,
    values_of,
    widened,
    write_raw,
)
from mint.kernels.cpu import pack
from mint.kernels.fused_rounding import DAMPING
from mint.kernels.refine import refine
from mint.kernels.unpack import FP4

_SMALL = 2.0**-40  # the squares of such inputs are far within float32
BLOCK = 128  # columns between two products of matrices
_ROWS, _FEW_ROWS = 64, 32  # of one piece of parallel work
_FEW = 128  # rows that make small pieces


@dataclass(frozen=True, slots=True, eq=False)
class Curvature:
    """H of the inputs of a matrix, (C, C), and its `factor`."""

    moments: Floats
    upper: Floats

    @classmethod
    def of(cls, inputs: Floats) -> Self:
        """The curvature of the rows (T, C)."""
        return cls.of_moments(second_moments(in_range(inputs)).astype(np.float32))

    @classmethod
    def of_moments(cls, moments: Floats) -> Self:
        """The curvature of second moments (C, C)."""
        return cls(moments, factor(moments.astype(np.float64)))


def in_range(inputs: Floats) -> Floats:
    """The rows, times a power of two where float32 does not hold their squares: only ratios within H count.

    Rows that are not finite count as zeros.
    """
    top = max(float(inputs.max(initial=0.0)), -float(inputs.min(initial=0.0)))
    if not top < inf:
        inputs = np.where(np.isfinite(inputs).all(axis=1, keepdims=True), inputs, np.float32(0))
        return in_range(inputs)
    return inputs if top == 0 or _SMALL < top < 1 / _SMALL else np.ldexp(inputs, -frexp(top)[1])


def second_moments(inputs: Floats) -> Doubles:
    """H (C, C) of the rows (T, C), as far as so many rows can tell."""
    rows, columns = inputs.shape
    moments = (inputs.T @ inputs).astype(np.float64)  # T times the second moments
    squares = np.diagonal(moments) / max(rows, 1)
    moments[np.diag_indices(columns)] += columns * squares
    moments /= rows + columns
    moments[np.diag_indices(columns)] += DAMPING * squares.mean()
    return moments


def factor(moments: Doubles) -> Floats:
    """The upper triangular U (C, C) of second moments (C, C); the identity where all inputs were zero."""
    if not np.trace(moments) > 0:
        return np.eye(len(moments), dtype=np.float32)
    from scipy.linalg.lapack import dpotrf, dtrtri  # slow to import

    # V turned by half is lower triangular; LAPACK inverts such a one in a quarter of the time of any other
    lower, failed = dpotrf(np.asfortranarray(moments[::-1, ::-1]), lower=1, clean=1, overwrite_a=1)
    if failed:
        raise np.linalg.LinAlgError("second moments are not positive definite")
    inverse, _ = dtrtri(lower, lower=1, overwrite_c=1)
    return np.ascontiguousarray(inverse[::-1, ::-1], np.float32)


def pack_compensated(
    weight: Raw, dtype: str, format: Format, curvature: Curvature, *, threads: int | None = None
) -> tuple[Any, ...]:
    """The tensors that store (R, C) weights: packed codes, scales and, for affine formats, biases; as `cpu.pack`.

    `weight` is raw storage of the safetensors `dtype`, or float32 values; `dtype` is that of the scales. Rows do not
    depend on each other, so pieces of them are packed at once, their products on one thread each.
    """
    size = _ROWS if len(weight) > _FEW else _FEW_ROWS
    pieces = [weight[start : start + size] for start in range(0, len(weight), size)]
    with single_threaded_products():
        packed = spread(lambda piece: _pack(piece, dtype, format, curvature), pieces, threads)
    return tuple(np.concatenate(parts) for parts in zip(*packed, strict=True))


def _pack(weight: Raw, dtype: str, format: Format, curvature: Curvature) -> tuple[Any, ...]:
    """The tensors of a piece of rows."""
    codes, parts = _rounded(weight, dtype, format, curvature.upper)
    if format.scheme.has_bias:
        grids = np.stack([widened(part.reshape(-1), dtype).reshape(part.shape) for part in parts], axis=-1)
        refine(weight, dtype, format, curvature.moments, codes, grids)
        for index, part in enumerate(parts):
            write_raw(grids[..., index].reshape(-1), STORAGES[dtype], part.reshape(-1))
    words = np.empty((len(codes), codes.shape[1] * format.bits // 32), np.uint32)
    wide: Words = codes.reshape(-1).astype(np.uint32)
    pack_codes(wide, format.bits, words.reshape(-1).view(np.uint8))
    return words, *parts


def _rounded(weight: Raw, dtype: str, format: Format, upper: Floats) -> tuple[Bytes, tuple[Any, ...]]:
    """The codes (R, C) of raw weights, their losses compensated, and the raw scales and maybe biases (R, G)."""
    rows, columns = weight.shape
    values = values_of(weight, dtype)
    importance = 1 / np.square(np.diagonal(upper), dtype=np.float64)
    codes, losses = np.empty((rows, columns), np.uint8), np.empty((rows, BLOCK), np.float32)
    stored = []
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        for first in range(start, end, format.group_size):
            group = slice(first, first + format.group_size)
            parts = _searched(values[:, group], dtype, format, importance[group])
            stored.append(parts)
            scales = scale_values(parts[0].reshape(-1), dtype, format.scheme)
            biases = widened(parts[1].reshape(-1), dtype) if format.scheme.has_bias else scales
            _round(values, numbers(format), first, end, upper, np.stack((scales, biases), axis=1), codes, losses)
        if end < columns:
            values[:, end:] -= losses[:, : end - start] @ upper[start:end, end:]
    return codes, tuple(np.concatenate(parts, axis=-1) for parts in zip(*stored, strict=True))


def _searched(values: Floats, dtype: str, format: Format, importance: Doubles) -> tuple[Any, ...]:
    """The scales and, for affine formats, biases (R, 1) of one group in every row."""
    flat = np.ascontiguousarray(values).reshape(-1)
    stored = np.empty(flat.size, np.float32 if dtype == "F32" else np.uint16)
    write_raw(flat, STORAGES[dtype], stored)
    weights = (importance / importance.mean()).astype(np.float32)
    _, *parts = pack(stored.reshape(1, *values.shape), dtype, format, search=True, importance=weights, threads=1)
    return tuple(part[0] for part in parts)


@compiled
def _round(
    values: Floats, numbers: Numbers, first: int, end: int, upper: Floats, grids: Floats, codes: Bytes, losses: Floats
) -> None:
    """Round the group of columns from `first` on, moving each loss on to the columns before `end`.

    `grids` (R, 2) are scales and biases; `losses` (R, B) are e of the block of columns.
    """
    mode, bits, group_size = numbers
    top = np.float32((1 << bits) - 1)
    for r in range(values.shape[0]):
        row, scale, bias = values[r], grids[r, 0], grids[r, 1]
        inverse = np.float32(1.0) / scale
        for c in range(first, first + group_size):
            weight = row[c]
            if mode == AFFINE:
                code = affine.nearest_code((weight - bias) * inverse, top)
                stored = code * scale + bias
                codes[r, c] = np.uint8(np.int32(code))
            else:
                index = fp4.nearest_code(weight, fp4.midpoints(scale))
                stored = FP4[index] * scale
                codes[r, c] = index
            loss = (weight - stored) / upper[c, c]
            losses[r, c % BLOCK] = loss
            rest, share = row[c + 1 : end], upper[c, c + 1 : end]
            for j in range(rest.size):
                rest[j] -= loss * share[j]
