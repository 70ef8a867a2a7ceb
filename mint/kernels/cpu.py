"""The fused CPU kernel: one pass over the weights measures all formats, and agrees with `mx.quantize` to the bit.

Groups lie along the last axis and divide it, so a slice is one long vector whose groups follow each other. It is cut
into chunks of `CHUNK` weights, the units of parallel work, and these into segments that stay in the first-level cache,
where every format is measured before the next segment is read. Chunks do not depend on the number of threads, and their
sums are added in order: neither do the results.

Squares are float32, so errors below about 1e-19 count as nothing; `energy` is float64.
"""

# S slices (experts), R rows, C columns, F formats, N weights of a piece of a slice

from collections.abc import Sequence
from typing import Any

import numpy as np

from mint.formats import Format
from mint.kernels import affine, fp4
from mint.kernels.compiled import (
    F16,
    LANES,
    SEGMENT,
    STORAGES,
    Bytes,
    Doubles,
    Floats,
    Raw,
    compiled,
    narrow,
    pack_codes,
    widen,
    write_raw,
)
from mint.kernels.distortion import Errors
from mint.kernels.threads import spread

CHUNK = 64 * SEGMENT
_LEAST_GROUP = 16
_AFFINE, _MXFP4, _NVFP4 = 0, 1, 2
_MODES = {"affine": _AFFINE, "mxfp4": _MXFP4, "nvfp4": _NVFP4}


def errors(weight: Raw, dtype: str, formats: Sequence[Format], *, threads: int | None = None) -> Errors:
    """The squared error of each slice of (S, R, C) weights in each of the F formats.

    `weight` is contiguous raw storage of the safetensors `dtype`: uint16 for BF16 and F16, float32 for F32. The error
    is that of scale * code + bias in float32, with scales and biases as stored. `threads` defaults to all cores.
    """
    assert all(format.admits(weight.shape, dtype) for format in formats)
    slices, chunks = _cut(weight)
    table = np.array([(_MODES[format.mode], format.bits, format.group_size) for format in formats], np.int64)
    table = table.reshape(-1, 3)

    def measure(chunk: tuple[int, int]) -> tuple[Doubles, int]:
        place, start = chunk
        return _measure(slices[place, start : start + CHUNK], STORAGES[dtype], table)

    totals = np.zeros((len(slices), len(formats) + 1))
    nonfinite = 0
    for (place, _), (sums, count) in zip(chunks, spread(measure, chunks, threads), strict=True):
        totals[place] += sums
        nonfinite += count
    return Errors(squared=totals[:, :-1], energy=totals[:, -1], nonfinite=nonfinite)


def pack(weight: Raw, dtype: str, format: Format, *, threads: int | None = None) -> tuple[Any, ...]:
    """What `mx.quantize` writes for (S, R, C) weights: packed codes, scales and, for affine formats, biases.

    Codes are uint32 (S, R, C*bits/32), scales and biases (S, R, C/group_size) in raw storage like `weight`; the scales
    of mxfp4 and nvfp4 are uint8.
    """
    assert format.admits(weight.shape, dtype)
    slices, chunks = _cut(weight)
    bits, group_size = format.bits, format.group_size
    packed = np.empty((len(slices), slices.shape[1] * bits // 8), np.uint8)
    groups = (len(slices), slices.shape[1] // group_size)
    mode = _MODES[format.mode]
    scales = np.empty(groups, weight.dtype if mode == _AFFINE else np.uint8)
    biases = np.empty(groups if mode == _AFFINE else (len(slices), 0), weight.dtype)

    def write(chunk: tuple[int, int]) -> None:
        place, start = chunk
        piece = slices[place, start : start + CHUNK]
        codes = packed[place, start * bits // 8 :]
        first = start // group_size
        if mode == _AFFINE:
            _pack_affine(piece, STORAGES[dtype], bits, group_size, codes, scales[place, first:], biases[place, first:])
        else:
            _pack_fp4(piece, STORAGES[dtype], mode, group_size, codes, scales[place, first:])

    spread(write, chunks, threads)
    rows = weight.shape[:2]
    words = packed.view(np.uint32).reshape(*rows, -1)
    if mode == _AFFINE:
        return words, scales.reshape(*rows, -1), biases.reshape(*rows, -1)
    return words, scales.reshape(*rows, -1)


def _cut(weight: Raw) -> tuple[Raw, list[tuple[int, int]]]:
    """Slices as vectors (S, R*C), and the (slice, start) of each chunk."""
    slices = weight.reshape(len(weight), -1)
    return slices, [(place, start) for place in range(len(slices)) for start in range(0, slices.shape[1], CHUNK)]


@compiled
def _measure(raw: Raw, storage: int, table: Any) -> tuple[Doubles, int]:
    """Squared errors in each format, then squared weights, summed (F+1,) float64, and the count of nonfinite weights.

    `table` (F, 3): mode, bits, group_size.
    """
    formats = table.shape[0]
    totals = np.zeros(formats + 1, np.float64)
    nonfinite = 0
    buffer = np.empty(SEGMENT, np.float32)
    lows, highs = np.empty((3, SEGMENT // 32), np.float32), np.empty((3, SEGMENT // 32), np.float32)
    room = np.empty((4, SEGMENT // _LEAST_GROUP), np.float32)
    stored = np.empty(SEGMENT // _LEAST_GROUP, np.uint8)
    lanes = np.empty(LANES, np.float32)
    for start in range(0, raw.size, SEGMENT):
        piece = raw[start : start + SEGMENT]
        values = buffer[: piece.size]
        widen(piece, storage, values)
        nonfinite += _count_nonfinite(values, storage)
        totals[formats] += _energy(values)
        affine.extremes(values, lows, highs)
        for f in range(formats):
            mode, bits, group_size = table[f]
            groups = piece.size // group_size
            scales, biases, stored_scales = room[0, :groups], room[1, :groups], room[2, :groups]
            scratch = room[3, :groups]
            lanes[:] = 0.0
            if mode == _AFFINE:
                top = np.float32((1 << bits) - 1)
                level = group_size // 64
                affine.grid(lows[level, :groups], highs[level, :groups], top, scales, biases)
                stored_scales[:] = scales
                narrow(stored_scales, storage, scratch)
                affine.add_errors(values, group_size, top, scales, biases, stored_scales, lanes)
            else:
                _fp4_scales(values, mode, storage, scratch, stored_scales, stored[:groups], scales)
                fp4.add_errors(values, group_size, scales, lanes)
            for lane in range(LANES):
                totals[f] += lanes[lane]
    return totals, nonfinite


@compiled
def _count_nonfinite(values: Floats, storage: int) -> int:
    """How many of (N,) weights are infinite or NaN; `widen` maps those of float16 to 2^16 and beyond."""
    words = values.view(np.uint32)
    limit = np.uint32(0x47800000) if storage == F16 else np.uint32(0x7F800000)
    count = np.uint32(0)
    for i in range(words.size):
        count += np.uint32(1) if (words[i] & np.uint32(0x7FFFFFFF)) >= limit else np.uint32(0)
    return int(count)


@compiled
def _energy(values: Floats) -> float:
    """The sum of the squares of (N,) weights, N a multiple of LANES, in float64."""
    lanes = np.zeros(LANES, np.float64)
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
def _fp4_scales(
    values: Floats, mode: int, storage: int, scratch: Floats, quotients: Floats, stored: Bytes, scales: Floats
) -> None:
    """Write the scales of (N,) weights in G groups, as bytes and as float32."""
    fp4.quotients(values, values.size // scales.size, storage, scratch, quotients)
    if mode == _MXFP4:
        fp4.mxfp4_scales(quotients, stored, scales)
    else:
        fp4.nvfp4_scales(quotients, scratch, stored, scales)


@compiled
def _pack_affine(raw: Raw, storage: int, bits: int, group_size: int, packed: Bytes, scales: Raw, biases: Raw) -> None:
    """Write the codes, scales and biases of a chunk (N,)."""
    top = np.float32((1 << bits) - 1)
    buffer = np.empty(SEGMENT, np.float32)
    codes = np.empty(SEGMENT, np.uint32)
    lows, highs = np.empty((3, SEGMENT // 32), np.float32), np.empty((3, SEGMENT // 32), np.float32)
    room = np.empty((3, SEGMENT // 32), np.float32)
    for start in range(0, raw.size, SEGMENT):
        piece = raw[start : start + SEGMENT]
        groups, first = piece.size // group_size, start // group_size
        values, scale, bias, scratch = buffer[: piece.size], room[0, :groups], room[1, :groups], room[2, :groups]
        level = group_size // 64
        widen(piece, storage, values)
        affine.extremes(values, lows, highs)
        affine.grid(lows[level, :groups], highs[level, :groups], top, scale, bias)
        affine.write_codes(values, group_size, top, scale, bias, codes)
        pack_codes(codes[: piece.size], bits, packed[start * bits // 8 :])
        narrow(scale, storage, scratch)
        write_raw(scale, storage, scratch, scales[first : first + groups])
        write_raw(bias, storage, scratch, biases[first : first + groups])


@compiled
def _pack_fp4(raw: Raw, storage: int, mode: int, group_size: int, packed: Bytes, scales: Bytes) -> None:
    """Write the codes and scales of a chunk (N,)."""
    buffer = np.empty(SEGMENT, np.float32)
    codes = np.empty(SEGMENT, np.uint32)
    room = np.empty((3, SEGMENT // group_size), np.float32)
    for start in range(0, raw.size, SEGMENT):
        piece = raw[start : start + SEGMENT]
        groups, first = piece.size // group_size, start // group_size
        values, scale, quotients, scratch = buffer[: piece.size], room[0, :groups], room[1, :groups], room[2, :groups]
        stored = scales[first : first + groups]
        widen(piece, storage, values)
        _fp4_scales(values, mode, storage, scratch, quotients, stored, scale)
        fp4.write_codes(values, group_size, scale, codes)
        pack_codes(codes[: piece.size], 4, packed[start // 2 :])
