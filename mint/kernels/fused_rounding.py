"""Compensated rounding on a GPU: kernels round and refine a group of all rows, MLX multiplies the matrices between.

The law is that of `compensate`, in float32 and without its order of sums: results are those of one device, and as near
to the weights as the CPU's within a percent. H is factored by halves: only blocks of `_FACTORED` columns go to LAPACK
on the CPU, all else is products of matrices.
"""

# T rows of inputs, R rows of weights, C columns, S columns of a group, G groups

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import frexp
from typing import Self

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mint.formats.format import Format
from mint.kernels.fused_source import Dialect, Kernel
from mint.kernels.rounding_source import refine_kernel, round_affine_kernel, round_fp4_kernel
from mint.kernels.search_arrays import LAST_SCALE, NEIGHBOURS, SCHEDULES, SCHEDULES_BF16
from mint.kernels.storage import numpy_view

DAMPING = 0.01  # of the mean diagonal
SWEEPS = 2  # of the refinement over all groups
ROUNDS = 2  # of codes and grid, at each visit of a group
_SINGULAR = 1e-4  # of the product of the diagonal: float32 has fewer digits than the CPU's sums
_BLOCK = 128  # columns between two products with all later columns
_FACTORED = 512  # columns that LAPACK factors
_LARGEST_UNIT = 100  # power of two

Floats = NDArray[np.float32]
Program = Callable[..., list[mx.array]]
RoundGroup = Callable[[mx.array, mx.array, mx.array], list[mx.array]]  # of values (S, R), heights (S,), U (S, S)


@dataclass(frozen=True, slots=True, eq=False)
class DeviceCurvature:
    """H of the inputs of a matrix (C, C), and U of `compensate`, on the device."""

    moments: mx.array
    upper: mx.array

    @classmethod
    def of(cls, inputs: Floats, factored: int = _FACTORED) -> Self:
        """The curvature of the rows (T, C), finite and with squares that float32 holds.

        LAPACK factors blocks of at most `factored` columns.
        """
        return cls.of_moments(device_moments(inputs), factored)

    @classmethod
    def of_moments(cls, moments: mx.array, factored: int = _FACTORED) -> Self:
        """The curvature of second moments (C, C)."""
        if not float(numpy_view(mx.max(mx.diagonal(moments)))) > 0:
            return cls(moments, mx.eye(len(moments)))
        turned = inverse_factor(moments[::-1, ::-1], factored)
        upper = mx.contiguous(turned[::-1, ::-1])
        mx.eval(moments, upper)
        return cls(moments, upper)


def device_moments(inputs: Floats) -> mx.array:
    """H (C, C) of the rows (T, C) as far as so many rows can tell, symmetric to the last bit: see `second_moments`."""
    count, columns = inputs.shape
    rows = mx.array(inputs)
    moments = rows.T @ rows
    squares = mx.diagonal(moments)
    mean = mx.mean(squares) / max(count, 1)
    above = mx.triu(moments, 1) / (count + columns)
    diagonal = squares * (1 + columns / max(count, 1)) / (count + columns) + DAMPING * mean
    symmetric: mx.array = above + above.T + mx.diag(diagonal)
    mx.eval(symmetric)
    return symmetric


def inverse_factor(moments: mx.array, factored: int = _FACTORED) -> mx.array:
    """The inverse of the lower triangular L (C, C) with L L^T = H; raises `LinAlgError` if H is not positive."""
    columns = len(moments)
    if columns <= factored:
        return mx.array(_inverse_factor_on_cpu(numpy_view(mx.contiguous(moments, stream=mx.cpu))))
    half = columns // 2
    first = inverse_factor(moments[:half, :half], factored)
    below = moments[half:, :half] @ first.T
    second = inverse_factor(moments[half:, half:] - below @ below.T, factored)
    corner = mx.zeros((half, columns - half))
    left = -(second @ (below @ first))
    return mx.concatenate([mx.concatenate([first, corner], 1), mx.concatenate([left, second], 1)], 0)


def _inverse_factor_on_cpu(moments: Floats) -> Floats:
    from scipy.linalg.lapack import dpotrf, dtrtri  # slow to import

    lower, failed = dpotrf(moments.astype(np.float64, order="F"), lower=1, clean=1, overwrite_a=1)
    if failed:
        raise np.linalg.LinAlgError("second moments are not positive definite")
    inverse, _ = dtrtri(lower, lower=1, overwrite_c=1)
    return np.ascontiguousarray(inverse, np.float32)


@dataclass(frozen=True)
class FusedRounding:
    """The kernels of compensated rounding in a language, built at first use by `build`."""

    dialect: Dialect
    build: Callable[[Kernel], Program]

    @cached_property
    def _affine(self) -> Program:
        return self.build(round_affine_kernel(self.dialect))

    @cached_property
    def _fp4(self) -> Program:
        return self.build(round_fp4_kernel(self.dialect))

    @cached_property
    def _refine(self) -> Program:
        return self.build(refine_kernel(self.dialect))

    def pack(
        self, weight: mx.array, dtype: mx.Dtype, format: Format, curvature: DeviceCurvature
    ) -> tuple[mx.array, ...]:
        """The tensors that store (R, C) weights, with scales of a `dtype`, not yet computed: as `pack_compensated`."""
        values = weight.astype(mx.float32)
        unit = _unit(values)
        columns = mx.contiguous((values / unit).T)
        codes, parts = self._rounded(columns, dtype, format, curvature.upper, unit)
        if format.scheme.has_bias:
            codes, parts = self._refined(columns, codes, parts, format, curvature.moments, unit)
        return words_of(codes.T, format.bits), *(mx.contiguous(part.T) for part in parts)

    def _rounded(
        self, columns: mx.array, dtype: mx.Dtype, format: Format, upper: mx.array, unit: float
    ) -> tuple[mx.array, list[mx.array]]:
        """The codes (C, R) of columns (C, R), their losses compensated; scales and maybe biases (G, R)."""
        size, total = format.group_size, len(columns)
        importance = 1 / mx.square(mx.diagonal(upper))
        shape = size, columns.shape[1]
        if format.scheme.has_bias:
            round_group = self._affine_rounder(shape, dtype, format, unit)
        else:
            round_group = self._fp4_rounder(shape, format, unit)
        codes, parts = list[mx.array](), list[Sequence[mx.array]]()
        rest = columns
        for start in range(0, total, _BLOCK):
            end = min(start + _BLOCK, total)
            block, losses = rest[: end - start], list[mx.array]()
            for first in range(start, end, size):
                group = slice(first, first + size)
                heights = importance[group] / mx.mean(importance[group])
                own = mx.contiguous(upper[group, group])
                code, loss, *stored = round_group(block[:size], heights, own)
                codes.append(code)
                losses.append(loss)
                parts.append(stored)
                block = block[size:] - upper[group, first + size : end].T @ loss
            if end < total:
                rest = rest[end - start :] - upper[start:end, end:].T @ mx.concatenate(losses)
                mx.eval(rest, codes, parts)
        return mx.concatenate(codes), [mx.stack(list(part)) for part in zip(*parts, strict=True)]

    def _affine_rounder(self, shape: tuple[int, int], dtype: mx.Dtype, format: Format, unit: float) -> RoundGroup:
        """Gives the codes and losses (S, R) of a group of this shape, and its scales and biases (R,)."""
        size, rows = shape
        step, *counts = (SCHEDULES_BF16 if dtype == mx.bfloat16 else SCHEDULES)[format.bits]
        rest = _words([rows, format.bits, size, *counts]), _floats(step, unit, 1 / unit)
        kernel, dtypes = round_affine_kernel(self.dialect), (mx.uint8, mx.float32, dtype, dtype)
        return lambda *group: _call(self._affine, kernel, (*group, *rest), dtype, shape, dtypes)

    def _fp4_rounder(self, shape: tuple[int, int], format: Format, unit: float) -> RoundGroup:
        """Gives the codes and losses (S, R) of a group of this shape, and its scales (R,)."""
        size, rows = shape
        number = format.scheme.kernel
        last, neighbours = LAST_SCALE[number], NEIGHBOURS[number]
        table = mx.array(np.array(format.scheme.scale_values[: last + 1], np.float32)) / unit
        rest = table, _words([rows, size, last, -min(neighbours), max(1, *neighbours)])
        kernel, dtypes = round_fp4_kernel(self.dialect), (mx.uint8, mx.float32, mx.uint8)
        return lambda *group: _call(self._fp4, kernel, (*group, *rest), mx.float32, shape, dtypes)

    def _refined(
        self,
        columns: mx.array,
        codes: mx.array,
        parts: Sequence[mx.array],
        format: Format,
        moments: mx.array,
        unit: float,
    ) -> tuple[mx.array, list[mx.array]]:
        """Codes (C, R), scales and biases (G, R) after some sweeps of `refine` over all groups."""
        size, (total, rows) = format.group_size, columns.shape
        scales, biases = (mx.repeat(part.astype(mx.float32) / unit, size, axis=0) for part in parts)
        gradient = moments @ (codes.astype(mx.float32) * scales + biases - columns)
        starts = range(0, total, size)
        groups = [(codes[start : start + size], *(part[index] for part in parts)) for index, start in enumerate(starts)]
        numbers = _words([rows, format.bits, size, ROUNDS])
        factors = _floats(unit, 1 / unit, _SINGULAR)
        kernel, dtype = refine_kernel(self.dialect), parts[0].dtype
        dtypes = mx.uint8, mx.float32, dtype, dtype
        for _ in range(SWEEPS):
            for index, start in enumerate(starts):
                group = slice(start, start + size)
                code, scale, bias = groups[index]
                own = mx.contiguous(moments[group, group])
                inputs = (gradient[group], code, own, scale, bias, numbers, factors)
                code, changes, scale, bias = _call(self._refine, kernel, inputs, dtype, (size, rows), dtypes)
                groups[index] = code, scale, bias
                gradient = gradient + moments[:, group] @ changes
                if index % 16 == 15:
                    mx.eval(gradient)
        refined = [list(part) for part in zip(*groups, strict=True)]
        return mx.concatenate(refined[0]), [mx.stack(part) for part in refined[1:]]


def _call(
    program: Program,
    kernel: Kernel,
    inputs: Sequence[mx.array],
    dtype: mx.Dtype,
    shape: Sequence[int],
    dtypes: Sequence[mx.Dtype],
) -> list[mx.array]:
    """The results of a group (S, R): two of its shape, then some of one number a row."""
    rows = shape[1]
    return program(
        inputs=list(inputs),
        template=[("T", dtype)],
        grid=(-(-rows // kernel.threads) * kernel.threads, 1, 1),
        threadgroup=(kernel.threads, 1, 1),
        output_shapes=[tuple(shape)] * 2 + [(rows,)] * (len(dtypes) - 2),
        output_dtypes=list(dtypes),
    )


def _unit(values: mx.array) -> float:
    """A power of two near the largest magnitude of the weights: divided by it, their squares are within float32."""
    exponent = frexp(float(numpy_view(abs(values).max())))[1]
    return float(2.0 ** max(-_LARGEST_UNIT, min(exponent, _LARGEST_UNIT)))


def _words(numbers: Sequence[int]) -> mx.array:
    return mx.array(list(numbers), mx.uint32)


def _floats(*numbers: float) -> mx.array:
    return mx.array(numbers, mx.float32)


def words_of(codes: mx.array, bits: int) -> mx.array:
    """(R, C) codes in one little-endian stream of bits, the first code lowest: uint32 (R, C * bits / 32)."""
    rows, columns = codes.shape
    codes = codes.astype(mx.uint32).reshape(rows, columns // 32, 32)
    words = [mx.zeros(codes.shape[:2], mx.uint32) for _ in range(bits)]
    for index in range(32):
        word, shift = divmod(index * bits, 32)
        words[word] = words[word] | (codes[..., index] << shift)
        if shift + bits > 32:
            words[word + 1] = words[word + 1] | (codes[..., index] >> (32 - shift))
    return mx.stack(words, -1).reshape(rows, -1)
