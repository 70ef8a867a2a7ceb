"""Finds the affine grid that weights lie on, so that they are stored without a new rounding error.

The weights of a checkpoint of integers, and those of a model that was trained for them, are round(k * scale) with an
integer k in every group, rounded to the weight's dtype. Their extremes need not have the outer codes, so the grid of
`mx.quantize` is another one. Here the scale is taken from the weight of largest magnitude m: it is m / K for some
integer K, up to the rounding of m and of the scale. The first K that gives every weight of the group is taken; a group
off any grid is left after a few weights, so ordinary weights cost next to nothing.
A bias is the lowest integer times the scale: -2^(bits-1), a power of two, where the integers allow it, so that it is
not rounded. It is rounded for checkpoints with odd zero points (AWQ); then the error is that of the rounding. With one
bit more every integer of such a grid lies from -2^bits up, so that format has no error.
"""

# S slices, R rows, C columns, N weights of a piece of a slice, G groups

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from mint.formats.format import Format
from mint.kernels.compiled import (
    BF16,
    CHUNK,
    F32,
    STORAGES,
    Bytes,
    Doubles,
    Floats,
    Raw,
    compiled,
    inlined,
    pack_codes,
    rounded,
    spread,
    widen,
    widened,
    write_raw,
)
from mint.kernels.storage import DTYPE_NAMES, NUMPY_DTYPES, raw

_TOPS = (15, 255)  # the largest integers that are looked for: those of 4 bits first
_LEAST_GROUP = 32
_SPACING = {"BF16": 1 << 16, "F16": 1 << 13, "F32": 1}  # of neighbours, in the last bit of a float32


Place = tuple[int, int, int]  # of a format among those that are tried: largest integer, -group size, bits
_FIRST: Place = (0, 0, 0)


@dataclass(frozen=True, slots=True)
class Grid:
    """The affine format whose codes give a stack, and for all groups (S, G) the scale and the range of integers."""

    place: Place
    format: Format
    scales: Floats
    lows: Raw
    highs: Raw


@dataclass(frozen=True, slots=True)
class OnGrid:
    """A stack stored on its grid: the tensors in the order of `Format.tensors`, and the squared error of each slice."""

    format: Format
    parts: tuple[Raw, ...]
    squared: Doubles


def stored_on_grid(
    blocks: Callable[[], Iterable[tuple[slice, mx.array]]], formats: Sequence[Format]
) -> Iterator[tuple[slice, OnGrid] | Format]:
    """Yield the affine format of fewest bits, and the largest groups, that is the grid of a stack, after its blocks.

    If it rounds biases, the next format of its groups with more bits, which rounds none, is yielded too, after another
    pass. Ordinary weights have no format. `blocks` makes a pass over evaluated weights (S, R, C), each with its slices.
    Every block is yielded as stored in a format; only those of the pass before a format are stored in it for certain.
    A weight counts no error where the stored value, rounded to its dtype, is equal. Where blocks have different grids,
    another pass begins at the farthest one: no earlier one fits them all.
    """
    affine, least, is_exact = [format for format in formats if format.scheme.is_default], _FIRST, False
    while not is_exact:
        grids: dict[Place, Format] = {}
        has_weights, is_exact = False, True
        for slices, block in blocks():
            dtype, stack = DTYPE_NAMES[block.dtype], raw(block)
            if not has_weights and (group := _first_weights(stack.reshape(-1))) is not None:
                has_weights = True
                if not _may_lie_on_grid(group, dtype):
                    return
            grid = _find(stack, dtype, affine, least)
            if grid is None:
                return
            grids[grid.place] = grid.format
            stored = _store(stack, dtype, grid)
            yield slices, stored
            is_exact &= dtype == "F32" or not stored.squared.any()  # float32 rounds below any other dtype
        if not has_weights:
            return
        least = max(grids)
        if len(grids) > 1:
            is_exact = False
            continue
        yield (format := grids[least])
        affine = [other for other in affine if other.group_size == format.group_size and other.bits > format.bits]
        least = (*least[:2], least[2] + 1)


def _find(stack: Raw, dtype: str, formats: Sequence[Format], least: Place) -> Grid | None:
    slices = stack.reshape(len(stack), -1)
    for top in _TOPS:
        for group_size in sorted({format.group_size for format in formats}, reverse=True):
            if (top, -group_size) < least[:2]:
                continue
            groups = len(slices), slices.shape[1] // group_size
            parts = np.empty(groups, np.float32), np.empty(groups, np.int32), np.empty(groups, np.int32)
            if not all(spread(partial(_fit_chunk, slices, dtype, top, group_size, parts), _chunks(slices), None)):
                continue
            span = int((parts[2] - parts[1]).max())
            places = {(top, -group_size, f.bits): f for f in formats if f.group_size == group_size and 2**f.bits > span}
            if storing := [place for place in places if place >= least]:
                return Grid(min(storing), places[min(storing)], *parts)
    return None


def _fit_chunk(
    slices: Raw, dtype: str, top: int, group_size: int, parts: tuple[Floats, Raw, Raw], chunk: tuple[int, int]
) -> bool:
    index, start = chunk
    piece = slices[index, start : start + CHUNK]
    group = slice(start // group_size, (start + len(piece)) // group_size)
    return bool(_fit(piece, STORAGES[dtype], top, *(part[index, group] for part in parts)))


def _store(stack: Raw, dtype: str, grid: Grid) -> OnGrid:
    slices, format = stack.reshape(len(stack), -1), grid.format
    tensors = format.tensors("", stack.shape, dtype)
    parts: tuple[Raw, ...] = tuple(np.empty(tensor.shape, NUMPY_DTYPES[tensor.dtype]) for tensor in tensors)
    packed, scales, biases = (part.reshape(len(slices), -1) for part in parts)
    codes = packed.view(np.uint8)

    def write(chunk: tuple[int, int]) -> float:
        index, start = chunk
        piece = slices[index, start : start + CHUNK]
        first = start // format.group_size
        group = slice(first, first + len(piece) // format.group_size)
        ranges = grid.scales[index, group], grid.lows[index, group], grid.highs[index, group]
        outputs = codes[index, start * format.bits // 8 :], scales[index, group], biases[index, group]
        return float(_write(piece, STORAGES[dtype], format.bits, *ranges, *outputs))

    squared = np.zeros(len(slices))
    chunks = _chunks(slices)
    for (index, _), error in zip(chunks, spread(write, chunks, None), strict=True):
        squared[index] += error
    return OnGrid(format, parts, squared)


def _chunks(slices: Raw) -> list[tuple[int, int]]:
    return [(index, start) for index in range(len(slices)) for start in range(0, slices.shape[1], CHUNK)]


def _first_weights(vector: Raw) -> Raw | None:
    """The first group of 32 with a weight; None if all are zeros."""
    for size in (_LEAST_GROUP, CHUNK, vector.size):
        bits = vector[:size].view(f"u{vector.itemsize}") << 1  # without the sign
        if bits.any():
            start = int(np.argmax(bits != 0)) // _LEAST_GROUP * _LEAST_GROUP
            return np.ascontiguousarray(vector[start : start + _LEAST_GROUP])
    return None


def _may_lie_on_grid(group: Raw, dtype: str) -> bool:
    """A quick look in numpy at a group: ordinary weights need no compiled kernel."""
    top, values = _TOPS[-1], widened(group, dtype)
    middles = _rounded(np.abs(values).max() / np.arange(1, top + 1, dtype=np.float32), dtype)
    steps = np.array([0, -1, 1], np.int32) * np.int32(_SPACING[dtype])
    scales = (middles.view(np.int32)[:, None] + steps).reshape(-1, 1).view(np.float32)
    with np.errstate(all="ignore"):
        integers = np.rint(values / scales)
        fits = _rounded(integers * scales, dtype) == values
    return bool((fits.all(1) & (integers.max(1) - integers.min(1) <= top)).any())


def _rounded(values: Floats, dtype: str) -> Floats:
    if dtype == "BF16":
        words = np.ascontiguousarray(values).view(np.uint32)
        return ((words + (0x7FFF + ((words >> 16) & 1))) & np.uint32(0xFFFF0000)).astype(np.uint32).view(np.float32)
    return values.astype(np.float16).astype(np.float32) if dtype == "F16" else values


@compiled
def _fit(raw: Raw, storage: int, top: int, scales: Floats, lows: Any, highs: Any) -> bool:
    """Write scale and range of integers of each group (G,) of (N,) weights; False at the first group off a grid."""
    size, hint = raw.size // scales.size, 1
    values = np.empty(size, np.float32)
    spacing = 1 if storage == F32 else 1 << 16 if storage == BF16 else 1 << 13
    for group in range(scales.size):
        widen(raw[group * size : (group + 1) * size], storage, values)
        largest = np.float32(0.0)
        for value in values:
            largest = max(largest, abs(value))
        scales[group], lows[group], highs[group] = np.float32(1.0), 0, 0
        found = largest == np.float32(0.0)
        for trial in range(-1, 3 * top):  # the integer of the group before comes first
            if found:
                break
            count, step = (hint, 0) if trial < 0 else (trial // 3 + 1, trial % 3 - 1)
            word = np.int32(np.float32(rounded(largest / np.float32(count), storage)).view(np.int32))
            scale = np.int32(word + step * spacing).view(np.float32)
            low, high = _integers(values, scale, storage, top)
            found = high - low <= top
            if found:
                scales[group], lows[group], highs[group], hint = scale, low, high, count
        if not found:
            return False
    return True


@inlined
def _integers(values: Floats, scale: np.float32, storage: int, top: int) -> tuple[int, int]:
    """The range of the integers whose rounded multiples of a scale are these values; beyond `top` if none are."""
    low, high = np.float32(0.0), np.float32(0.0)
    limit = np.float32(top)
    if not scale > low:
        return 0, 2 * top
    for value in values:
        integer = np.rint(value / scale)
        if not abs(integer) <= limit or rounded(integer * scale, storage) != value:
            return 0, 2 * top
        low, high = min(low, integer), max(high, integer)
    return int(low), int(high)


@compiled
def _write(
    raw: Raw, storage: int, bits: int, scales: Floats, lows: Any, highs: Any, packed: Bytes, stored: Raw, biases: Raw
) -> float:
    """Write the codes, scales and biases of (N,) weights; returns their squared error."""
    size, error = raw.size // scales.size, 0.0
    values, codes = np.empty(size, np.float32), np.empty(size, np.uint32)
    bias = np.empty(1, np.float32)
    for group in range(scales.size):
        scale = scales[group]
        least = _least_integer(lows[group], highs[group], scale, bits, storage)
        bias[0] = rounded(np.float32(least) * scale, storage)
        widen(raw[group * size : (group + 1) * size], storage, values)
        for i in range(size):
            code = np.rint(values[i] / scale) - np.float32(least)
            codes[i] = np.uint32(np.int32(code))
            restored = code * scale + bias[0]
            if rounded(restored, storage) != values[i]:
                error += np.float64(restored - values[i]) ** 2
        pack_codes(codes, bits, packed[group * size * bits // 8 :])
        write_raw(scales[group : group + 1], storage, stored[group : group + 1])
        write_raw(bias, storage, biases[group : group + 1])
    return error


@inlined
def _least_integer(low: int, high: int, scale: np.float32, bits: int, storage: int) -> int:
    """The integer of code 0: minus half the range if it fits, else one whose bias is not rounded, else the lowest."""
    top, half = (1 << bits) - 1, 1 << (bits - 1)
    if -half <= low and high < half:
        return -half
    for least in range(low, high - top - 1, -1):
        if rounded(np.float32(least) * scale, storage) == np.float32(least) * scale:
            return least
    return low
