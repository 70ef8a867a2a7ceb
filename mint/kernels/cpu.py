"""The fused CPU kernel: one pass over the weights measures all formats, and agrees with `mx.quantize` to the bit.

Groups lie along the last axis and divide it, so a slice is one long vector whose groups follow each other. It is cut
into chunks of `CHUNK` weights, the units of parallel work, and these into segments that stay in the first-level cache,
where every format is measured before the next segment is read. Chunks do not depend on the number of threads, and their
sums are added in order: neither do the results.

Squares are float32, so errors below about 1e-19 count as nothing; `energy` is float64.
"""

# S slices (experts), R rows, C columns, F formats, N weights of a piece of a slice

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from mint.core.memory import memory_bytes
from mint.formats.format import Format
from mint.formats.rounding import Rounding
from mint.kernels import affine, fp4, oracle
from mint.kernels import search as searched
from mint.kernels.compiled import (
    AFFINE,
    CHUNK,
    F16,
    LANES,
    SEGMENT,
    STORAGES,
    Bytes,
    Doubles,
    Floats,
    Numbers,
    Raw,
    Words,
    compiled,
    inner,
    numbers,
    pack_codes,
    spread,
    widen,
    write_raw,
)
from mint.kernels.fused_rounding import FusedRounding
from mint.kernels.oracle import Errors
from mint.kernels.storage import DTYPE_NAMES, NUMPY_DTYPES, raw
from mint.kernels.unpack import multiply, unpack

_LEAST_GROUP = 16


class CpuBackend:
    """Any CPU. Products of float32 matrices are what it multiplies fast; of bf16 or packed ones 10-20 times slower."""

    kind = "cpu"
    measures_with = compensates_with = "compiled kernels"
    roundings: tuple[str, ...] = ("nearest", "search")
    runs_stored_weights = False
    unpacks_lazily = False
    fuses_functions = False
    has_compiled_kernels = True
    uses_blas = True
    fused_rounding: FusedRounding | None = None

    def memory_bytes(self) -> int:
        return memory_bytes()

    def working_bytes(self, weights: int) -> int:
        """None: a block of weights stays in the cache."""
        return 0

    def errors(self, weight: mx.array, formats: Sequence[Format], rounding: Rounding) -> Errors:
        known = tuple(format for format in formats if format.scheme.is_compiled)
        measured = errors(raw(weight), DTYPE_NAMES[weight.dtype], known, search=rounding.searches)
        if len(known) == len(formats):
            return measured
        squared = dict(zip(known, measured.squared.T, strict=True))
        for format in formats:
            if format not in squared:
                parts = (oracle.errors(weight[index : index + 1], [format]) for index in range(len(weight)))
                squared[format] = np.concatenate([part.squared[:, 0] for part in parts])
        return replace(measured, squared=np.stack([squared[format] for format in formats], axis=1))

    def pack(self, weight: mx.array, format: Format, rounding: Rounding) -> tuple[Any, ...]:
        if not format.scheme.is_compiled:
            return tuple(map(raw, oracle.pack(weight, format)))
        return pack(raw(weight), DTYPE_NAMES[weight.dtype], format, search=rounding.searches)

    def unpack(self, parts: Sequence[mx.array], format: Format) -> mx.array:
        if not format.scheme.is_compiled:
            return oracle.dequantize(tuple(parts), format)
        return unpack(*_stored(parts), format)

    def multiply(self, vectors: mx.array, parts: Sequence[mx.array], format: Format) -> mx.array:
        if not format.scheme.is_compiled:
            return vectors @ oracle.dequantize(tuple(parts), format).T
        return mx.array(multiply(*_stored(parts), format, raw(vectors)))


def _stored(parts: Sequence[mx.array]) -> tuple[list[Raw], str]:
    """The memory of tensors, and the safetensors dtype of their scales; empty where scales are bytes."""
    return list(map(raw, parts)), DTYPE_NAMES.get(parts[1].dtype, "")


def errors(
    weight: Raw,
    dtype: str,
    formats: Sequence[Format],
    *,
    search: bool = False,
    importance: Floats | None = None,
    threads: int | None = None,
) -> Errors:
    """The squared error of each slice of (S, R, C) weights in each of the F formats.

    `weight` is contiguous raw storage of the safetensors `dtype`: uint16 for BF16 and F16, float32 for F32. The error
    is that of scale * code + bias in float32, with scales and biases as stored. `threads` defaults to all cores.

    Scales are those of `mx.quantize`, or with `search` of less error (see `search_affine`). The search minimizes the
    squared error times the `importance` (C,) of its column, above zero and near 1; the error itself is returned.
    """
    assert all(format.admits(weight.shape, dtype) for format in formats)
    _check(weight, search, importance)
    slices, chunks = _cut(weight)
    table = np.array(list(map(numbers, formats)), np.int64).reshape(-1, 3)

    def measure(chunk: tuple[int, int]) -> tuple[Doubles, int]:
        index, start = chunk
        piece, here = slices[index, start : start + CHUNK], table[: 0 if search else None]
        totals = np.zeros(len(here) + 1)
        nonfinite = _measure(piece, STORAGES[dtype], here, _buffers(), totals)
        if search:
            squared = searched.measure(piece, STORAGES[dtype], table, importance, start % weight.shape[2])
            totals = np.append(squared, totals)
        return totals, nonfinite

    totals = np.zeros((len(slices), len(formats) + 1))
    nonfinite = 0
    for (index, _), (sums, count) in zip(chunks, spread(measure, chunks, threads), strict=True):
        totals[index] += sums
        nonfinite += count
    return Errors(squared=totals[:, :-1], energy=totals[:, -1], nonfinite=nonfinite)


def pack(
    weight: Raw,
    dtype: str,
    format: Format,
    *,
    search: bool = False,
    importance: Floats | None = None,
    threads: int | None = None,
) -> tuple[Any, ...]:
    """The tensors that store (S, R, C) weights: packed codes, scales and, for affine formats, biases.

    Codes are uint32 (S, R, C*bits/32), scales and biases (S, R, C/group_size) in raw storage like `weight`; the scales
    of mxfp4 and nvfp4 are uint8. Without a search, they are what `mx.quantize` writes; with one, what `errors`
    measures with the same arguments.
    """
    assert format.admits(weight.shape, dtype)
    _check(weight, search, importance)
    slices, chunks = _cut(weight)
    tensors = format.tensors("", weight.shape, dtype)
    outputs: tuple[Raw, ...] = tuple(np.empty(tensor.shape, NUMPY_DTYPES[tensor.dtype]) for tensor in tensors)
    vectors = [output.reshape(len(slices), -1).view(np.uint8) for output in outputs]
    empty = np.empty((2, 0), np.uint8)  # in place of affine scales and biases

    def write(chunk: tuple[int, int]) -> None:
        index, start = chunk
        piece = slices[index, start : start + CHUNK]
        parts = [vector[index, start * vector.shape[1] // slices.shape[1] :] for vector in vectors]
        if search:
            written = (parts[0], parts[1], parts[-1])  # without biases, the last is not written
            searched.pack(piece, STORAGES[dtype], numbers(format), importance, start % weight.shape[2], written)
        else:
            packed, scale_bytes = parts[:2]
            scales, biases = (part.view(weight.dtype) for part in (parts[1:] if format.scheme.has_bias else empty))
            _pack(piece, STORAGES[dtype], numbers(format), packed, scale_bytes, scales, biases, _buffers())

    spread(write, chunks, threads)
    return outputs


def _check(weight: Raw, search: bool, importance: Floats | None) -> None:
    if importance is not None:
        assert search, "importance without a search changes nothing"
        assert importance.shape == weight.shape[2:] and importance.dtype == np.float32


def _cut(weight: Raw) -> tuple[Raw, list[tuple[int, int]]]:
    """Slices as vectors (S, R*C), and the (slice, start) of each chunk."""
    slices = weight.reshape(len(weight), -1)
    return slices, [(index, start) for index in range(len(slices)) for start in range(0, slices.shape[1], CHUNK)]


def _buffers() -> tuple[Floats, Floats, Floats, Floats, Bytes, Words, Floats, Doubles]:
    """The arrays of a segment: weights, lows, highs, scales and biases, scales as bytes, codes, lanes of both widths.

    Made here: every call of numpy in compiled code costs the compiler a tenth of a second.
    """
    groups = SEGMENT // 32
    return (
        np.empty(SEGMENT, np.float32),
        np.empty((3, groups), np.float32),
        np.empty((3, groups), np.float32),
        np.empty((2, SEGMENT // _LEAST_GROUP), np.float32),
        np.empty(SEGMENT // _LEAST_GROUP, np.uint8),
        np.empty(SEGMENT, np.uint32),
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float64),
    )


@compiled
def _measure(raw: Raw, storage: int, table: Any, buffers: Any, totals: Doubles) -> int:
    """Add the squared errors in each format, then the squared weights, to `totals` (F+1,).

    Returns the count of nonfinite weights. `table` (F, 3): mode, bits, group_size.
    """
    buffer, lows, highs, grids, stored, _, lanes, wide_lanes = buffers
    formats, nonfinite = table.shape[0], 0
    for start in range(0, raw.size, SEGMENT):
        piece = raw[start : start + SEGMENT]
        values = buffer[: piece.size]
        widen(piece, storage, values)
        nonfinite += _count_nonfinite(values, storage)
        totals[formats] += _energy(values, wide_lanes)
        affine.extremes(values, lows, highs)
        for f in range(formats):
            mode, bits, group_size = table[f, 0], table[f, 1], table[f, 2]
            groups, level = piece.size // group_size, group_size // 64
            scales, biases = grids[0, :groups], grids[1, :groups]
            for lane in range(LANES):
                lanes[lane] = np.float32(0.0)
            if mode == AFFINE:
                top = np.float32((1 << bits) - 1)
                affine.grid(lows[level, :groups], highs[level, :groups], top, scales, biases)
                affine.add_errors(values, group_size, top, storage, scales, biases, lanes)
            else:
                fp4.group_scales(values, mode, storage, stored[:groups], scales)
                fp4.add_errors(values, group_size, scales, lanes)
            for lane in range(LANES):
                totals[f] += lanes[lane]
    return nonfinite


@inner
def _count_nonfinite(values: Floats, storage: int) -> int:
    """The number of (N,) weights that are infinite or NaN; `widen` maps those of float16 to 2^16 and beyond."""
    limit = np.uint32(0x47800000) if storage == F16 else np.uint32(0x7F800000)
    count = np.uint32(0)
    for i in range(values.size):
        word = np.float32(values[i]).view(np.uint32) & np.uint32(0x7FFFFFFF)
        count += np.uint32(1) if word >= limit else np.uint32(0)
    return int(count)


@inner
def _energy(values: Floats, lanes: Doubles) -> float:
    """The sum of the squares of (N,) weights, N a multiple of LANES, in float64."""
    for lane in range(LANES):
        lanes[lane] = 0.0
    for start in range(0, values.size, LANES):
        block = values[start : start + LANES]
        for lane in range(LANES):
            value = np.float64(block[lane])
            lanes[lane] += value * value
    total = 0.0
    for lane in range(LANES):
        total += lanes[lane]
    return total


@compiled
def _pack(
    raw: Raw,
    storage: int,
    numbers: Numbers,
    packed: Bytes,
    scale_bytes: Bytes,
    stored_scales: Raw,
    stored_biases: Raw,
    buffers: Any,
) -> None:
    """Write the codes of a chunk (N,), and its scales: as bytes, or for affine formats with biases as `raw`."""
    mode, bits, group_size = numbers
    buffer, lows, highs, grids, _, codes, _, _ = buffers
    top = np.float32((1 << bits) - 1)
    for start in range(0, raw.size, SEGMENT):
        piece = raw[start : start + SEGMENT]
        groups, first, level = piece.size // group_size, start // group_size, group_size // 64
        values, scales, biases = buffer[: piece.size], grids[0, :groups], grids[1, :groups]
        widen(piece, storage, values)
        if mode == AFFINE:
            affine.extremes(values, lows, highs)
            affine.grid(lows[level, :groups], highs[level, :groups], top, scales, biases)
            affine.write_codes(values, group_size, top, scales, biases, codes)
            write_raw(scales, storage, stored_scales[first : first + groups])
            write_raw(biases, storage, stored_biases[first : first + groups])
        else:
            fp4.group_scales(values, mode, storage, scale_bytes[first : first + groups], scales)
            fp4.write_codes(values, group_size, scales, codes)
        pack_codes(codes[: piece.size], bits, packed[start * bits // 8 :])
