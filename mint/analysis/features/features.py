"""The features of a weight matrix in the published method, exactly defined: spectrum, groups, noise at the output.

Spectrum and noise are those of a seeded sample, so they take no longer than the errors. For a matrix of R rows and C
columns, N = R C weights (for a stack: the mean over at most `EXPERTS` drawn matrices):

* Sample: `R' = min(R, max(32, sqrt(N) / 4))` rows are drawn. For the spectrum, `C' = min(C, max(32, sqrt(N) / 4))`
  columns of these rows are drawn.
* Spectrum: randomized SVD of that block A (R', C') as in Halko, Martinsson and Tropp (arXiv 0909.4061), algorithms 4.1
  and 5.1: Y = A X with X normal (C', r + `OVERSAMPLING`), no power iteration, Q = orth(Y) by Cholesky, s the singular
  values of Q'A from the eigenvalues of its Gram matrix. The rank r is the least of 256, max(32, sqrt(N) / 10), R' and
  C': 256 from 2560 x 2560 on. Products are in float32, Gram matrices and later steps in float64. A block with at most
  r + 10 rows or columns gives its own singular values.
* Groups lie along the last axis. Their size is 128, or the greater of 64 and 32 that divides it. All groups of all
  matrices count. A group's kurtosis is m4 / m2^2 about its own mean: 3 for normal weights, 0 for equal ones.
* Noise: |dW x| / |W x|. dW is the error of `mx.quantize` to 4 bits with those groups on the drawn rows W; x = gain * z,
  z normal (C, `PROBES`), gain that of the norm before the unit (`norms.py`), 1 without one.

All are rounded to `DIGITS` significant digits, since BLAS adds in another order with other threads.
"""

# E matrices, R rows, C columns, G groups, K columns of a random matrix

import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields
from math import isqrt, log10
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

RANK, OVERSAMPLING = 256, 10
PROBES = 32
EXPERTS = 8
GROUP_SIZES = (128, 64, 32)
SIGMAS = 3.0
MOST_SPREAD = 10.0
DIGITS = 4
_LEAST = 32  # rows and columns of a block
_FLOOR = 1e-4  # of the greatest singular value: below it, products of float32 see zero
_SHIFT = 1e-10  # of the mean eigenvalue of a Gram matrix, so that a deficient rank has a Cholesky factor

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Raw = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Features:
    """Numbers without unit; all 0 for a weight of zeros."""

    stable_rank: float  # |A|_F^2 / s_1^2, of the block
    tail_mass: float  # share of the energy of s_1..s_r outside their first tenth (25 of 256)
    log_spread: float  # log10(s_1 / s_r), at most 10
    kurtosis_p90: float  # of the groups' kurtoses: the 90th percentile
    kurtosis_range: float  # their 99th percentile less their median
    kurtosis_peak: float  # their greatest less their median
    outlier_groups: float  # share of groups with a weight more than 3 of the group's sigmas from its mean
    noise: float  # |dW x| / |W x|


NAMES = tuple(field.name for field in fields(Features))


@dataclass(frozen=True, slots=True)
class Sample:
    """The sampled part of a matrix: rows, their columns for the spectrum, and its rank."""

    rows: int
    columns: int
    rank: int


def sample_of(rows: int, columns: int) -> Sample:
    """The sampled part of a matrix (R, C), by the rule above."""
    root = isqrt(rows * columns)
    block = min(rows, max(_LEAST, root // 4)), min(columns, max(_LEAST, root // 4))
    return Sample(*block, rank=min(RANK, max(_LEAST, root // 10), *block))


def group_size_of(columns: int) -> int:
    """The group size of features for rows of `columns` weights; 0 if none divides them: then there are no features."""
    return next((size for size in GROUP_SIZES if columns % size == 0), 0)


def features(
    blocks: Iterable[Raw],
    shape: tuple[int, int, int],
    dtype: str,
    path: str,
    gain: Floats | None = None,
    *,
    sample: Sample | None = None,
) -> Features:
    """The features of contiguous raw weights (E, R, C), one pass over blocks of some matrices each.

    `path` is that of the unit and seeds the sample. Weights are finite and a group size divides their rows; uint16
    patterns for BF16 and F16, float32 for F32. `gain` (C,) is that of the norm before the unit. `sample` overrides the
    size of the sample. The kurtoses of all groups are held: 1/64 of the bytes of weights in 16 bits.
    """
    from mint.kernels.group_features import kurtoses  # here, so that reading an analysis loads no compiler

    experts, rows, columns = shape
    group_size, sample = group_size_of(columns), sample or sample_of(rows, columns)
    random = np.random.default_rng(crc32(path.encode()))
    probes = random.standard_normal((columns, PROBES), np.float32)
    if gain is not None:
        probes *= gain[:, None]
    drawn = _draw(random, experts, EXPERTS)
    kurtosis = np.empty((experts, rows * columns // group_size), np.float32)
    spectral, outliers, start = [], 0, 0
    for block in blocks:
        stop = start + len(block)
        kurtosis[start:stop].reshape(-1)[:], reach = kurtoses(block, dtype, group_size)
        outliers += int(np.count_nonzero(reach > SIGMAS))
        for index in drawn[(start <= drawn) & (drawn < stop)]:
            spectral.append(_sampled(block[index - start], dtype, group_size, sample, probes, random))
        start = stop
    middle, p90, p99 = np.percentile(kurtosis, (50, 90, 99))
    *spectrum, noise = np.mean(spectral, axis=0)
    values = (*spectrum, p90, p99 - middle, kurtosis.max() - middle, outliers / kurtosis.size, noise)
    return Features(*(float(f"{value:.{DIGITS}g}") for value in values))


def _sampled(
    weight: Raw, dtype: str, group_size: int, sample: Sample, probes: Floats, random: np.random.Generator
) -> tuple[float, float, float, float]:
    """Stable rank, tail mass, log spread and noise of one matrix (R, C)."""
    from mint.kernels.group_features import rounding_errors

    rows = np.ascontiguousarray(weight[_draw(random, len(weight), sample.rows)])
    values, errors = rounding_errors(rows, dtype, group_size)
    signal = float(np.linalg.norm(product(values, probes)))
    noise = float(np.linalg.norm(product(errors, probes))) / signal if signal else 0.0
    block = np.ascontiguousarray(values[:, _draw(random, values.shape[1], sample.columns)])
    energy = float(np.square(block, dtype=np.float64).sum())
    return *_spectrum(singular_values(block, sample.rank, random), energy), noise


def singular_values(block: Floats, rank: int, random: np.random.Generator) -> Doubles:
    """The first `rank` singular values of a block (R, C), greatest first, approximated from below."""
    width = rank + OVERSAMPLING
    if min(block.shape) <= width:
        small = block if len(block) <= block.shape[1] else block.T
        squares = np.linalg.eigvalsh(_gram(np.ascontiguousarray(small.T)))
    else:
        test = random.standard_normal((block.shape[1], width), np.float32)
        basis = _orthonormal(product(block, test))
        squares = np.linalg.eigvalsh(_gram(product(block.T, basis)))
    values: Doubles = np.sqrt(np.maximum(squares[::-1][:rank], 0.0))
    return values


def product(left: Floats, right: Floats) -> Floats:
    """left @ right in float32, by MLX on a Mac and by numpy's BLAS elsewhere, where MLX is slow."""
    if sys.platform == "darwin":
        import mlx.core as mx

        from mint.kernels.storage import numpy_view

        return numpy_view(mx.array(left) @ mx.array(right))
    return left @ right


def _orthonormal(columns: Floats) -> Floats:
    """An orthonormal basis (R, K) of the columns (R, K); columns of rounding noise shrink instead."""
    gram = _gram(columns)
    gram += np.eye(len(gram)) * (_SHIFT * np.trace(gram) / len(gram))
    if not gram.any():
        return columns
    basis = columns.astype(np.float64) @ np.linalg.inv(np.linalg.cholesky(gram)).T
    return basis.astype(np.float32)


def _gram(columns: Floats) -> Doubles:
    """(R, K) -> (K, K) in float64."""
    wide = columns.astype(np.float64)
    return wide.T @ wide


def _spectrum(values: Doubles, energy: float) -> tuple[float, float, float]:
    """Stable rank, tail mass and log spread of the singular values of a block, greatest first, and its energy."""
    if not values[0]:
        return 0.0, 0.0, 0.0
    squares = np.square(values)
    top = max(1, len(values) // 10)
    spread = log10(values[0] / values[-1]) if values[-1] > _FLOOR * values[0] else MOST_SPREAD
    return energy / squares[0], squares[top:].sum() / squares.sum(), spread


def _draw(random: np.random.Generator, count: int, most: int) -> npt.NDArray[np.int64]:
    """All of `count` indices, or `most` of them, in order."""
    return np.arange(count) if count <= most else np.sort(random.choice(count, most, replace=False))
