"""The same errors and bytes on the devices that MLX drives: Metal and CUDA.

Affine formats rounded to nearest are measured and packed by fused kernels, and errors are compensated by others, where
these agreed with the CPU on this machine (`fused_check`, `rounding_check`). Everything else is MLX operations: what is
measured is what the device's own `mx.quantize` writes, which may differ from the CPU's in single codes. The device has
no float64: squares are summed in float32 over runs of at most `RUN` weights, and the runs in float64 on the host. Work
goes in blocks of rows, each finished before the next begins, so that memory stays bounded; every sum belongs to one
row, so blocks change no result.

Run on an NVIDIA H100 (`python -m tools.bench.gpu`) and on MLX's CPU device; no Metal device was at hand.
"""

# S slices (experts), R rows, C columns, F formats

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from math import gcd
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mint.formats.format import Format
from mint.formats.rounding import Rounding
from mint.kernels import oracle, search_arrays
from mint.kernels.fused import FusedKernels, this_gpu
from mint.kernels.fused_check import cpu_is_faster, fault_of
from mint.kernels.fused_rounding import FusedRounding, words_of
from mint.kernels.oracle import Errors
from mint.kernels.rounding_check import rounding_fault_of
from mint.kernels.storage import DTYPE_NAMES, numpy_view, raw
from mint.targets.devices import this_device

BLOCK_ELEMENTS = 64 << 20
SEARCHED_AT_ONCE = 8 << 20  # weights; a search holds a dozen float32 arrays of them
_WORKING_BYTES = 6 * 4  # of each weight of a block: a few float32 arrays that a lazy graph holds at once
RUN = 128
_TENSOR_FLOAT = "MLX_ENABLE_TF32"  # MLX reads it at the first product


class GpuBackend:
    """A GPU that MLX drives, with `fused` kernels or, where they disagree with the CPU, MLX operations."""

    roundings: tuple[str, ...] = ("nearest", "search")
    runs_stored_weights = True
    unpacks_lazily = True
    fuses_functions = True
    has_compiled_kernels = False
    uses_blas = False

    def __init__(self, fused: FusedKernels | None = None) -> None:
        self._chip = str(mx.device_info().get("device_name", "unknown"))
        fused = fused or this_gpu()
        os.environ.setdefault(_TENSOR_FLOAT, "0")  # its 10 bits are too few to factor second moments
        fault = fault_of(fused, self._chip) if fused else ""
        self._fused = None if fault else fused
        self._on_cpu: bool | None = None
        self._language = fused or None
        self.compensates_with = "compiled kernels of the CPU"
        self.kind = f"gpu {self._chip}, fused kernels" if self._fused else f"gpu {self._chip}"
        reason = f", since the fused kernels failed: {fault}" if fault else ""
        self.measures_with = "fused kernels" if self._fused else f"MLX operations{reason}"

    @cached_property
    def fused_rounding(self) -> FusedRounding | None:
        """The kernels of compensated rounding where they agreed with the CPU on this machine."""
        if not self._language:
            return None
        rounding = FusedRounding(self._language.dialect, self._language.build)
        fault = rounding_fault_of(rounding, self._chip)
        if fault:
            self.compensates_with += f", since the fused kernels failed: {fault}"
            return None
        self.compensates_with = "fused kernels"
        return rounding

    def memory_bytes(self) -> int:
        """The working set that Metal or CUDA recommends."""
        return this_device().working_set_bytes

    def working_bytes(self, weights: int) -> int:
        """The float32 arrays of one block of rows."""
        return min(weights, BLOCK_ELEMENTS) * _WORKING_BYTES

    def errors(self, weight: mx.array, formats: Sequence[Format], rounding: Rounding) -> Errors:
        if rounding.searches or not self._fused:
            return errors(weight, formats, search=rounding.searches)
        affine = [format for format in formats if format.scheme.is_default]
        others = [format for format in formats if format not in affine]
        measured = errors(weight, others)
        squared = dict(zip(others, measured.squared.T, strict=True))
        if affine:
            squared |= zip(affine, self._affine_squared(self._fused, weight, affine).T, strict=True)
        return replace(measured, squared=np.stack([squared[format] for format in formats], axis=1))

    def _affine_squared(self, fused: FusedKernels, weight: mx.array, formats: Sequence[Format]) -> NDArray[np.float64]:
        if self._on_cpu is None:
            self._on_cpu = cpu_is_faster(fused, self._chip, weight)
        if not self._on_cpu:
            return fused.squared(weight, formats)
        from mint.kernels import cpu  # imports the compiler

        self.measures_with = "compiled kernels of the CPU, faster here than fused ones"
        return cpu.errors(raw(weight), DTYPE_NAMES[weight.dtype], formats).squared

    def pack(self, weight: mx.array, format: Format, rounding: Rounding) -> tuple[Any, ...]:
        if self._fused and format.scheme.is_default and not rounding.searches:
            return tuple(map(raw, self._fused.pack(weight, format)))
        return tuple(map(raw, pack(weight, format, search=rounding.searches)))

    def unpack(self, parts: Sequence[mx.array], format: Format) -> mx.array:
        return oracle.dequantize(tuple(parts), format)

    def multiply(self, vectors: mx.array, parts: Sequence[mx.array], format: Format) -> mx.array:
        product = vectors @ self.unpack(parts, format).T
        mx.eval(product)
        return product


def errors(
    weight: mx.array, formats: Sequence[Format], *, search: bool = False, block_elements: int = BLOCK_ELEMENTS
) -> Errors:
    """The squared error of each slice of (S, R, C) weights, already evaluated, in each of the F formats."""
    slices, rows = weight.shape[:2]
    squared, energy = np.empty((slices * rows, len(formats))), np.empty(slices * rows)
    nonfinite = start = 0
    for block in _blocks(weight, search, block_elements):
        covered = slice(start, start + len(block))
        start = covered.stop
        energy[covered] = _row_sums(mx.square(block.astype(mx.float32)))
        nonfinite += int(numpy_view(mx.sum(~mx.isfinite(block))))
        for index, format in enumerate(formats):
            restored = oracle.dequantize(_packed(block, format, search, None), format)
            squared[covered, index] = _row_sums(_squared_difference(restored, block))
    return Errors(
        squared=squared.reshape(slices, rows, -1).sum(1) if formats else np.empty((slices, 0)),
        energy=energy.reshape(slices, rows).sum(1),
        nonfinite=nonfinite,
    )


def pack(
    weight: mx.array,
    format: Format,
    *,
    search: bool = False,
    importance: mx.array | None = None,
    block_elements: int = BLOCK_ELEMENTS,
) -> tuple[mx.array, ...]:
    """The tensors that store (S, R, C) weights: codes, scales and, for affine formats, biases.

    Without a search, they are what this device's `mx.quantize` writes. `search` and `importance` (C,) as on the CPU.
    """
    pieces = []
    for block in _blocks(weight, search, block_elements):
        piece = _packed(block, format, search, importance)
        mx.eval(piece)
        pieces.append(piece)
    return tuple(mx.concatenate(list(parts)).reshape(*weight.shape[:2], -1) for parts in zip(*pieces, strict=True))


def _blocks(weight: mx.array, search: bool, block_elements: int) -> Iterator[mx.array]:
    """Rows of all slices in order, as many at a time as memory allows, at least one: (rows, C)."""
    columns = weight.shape[-1]
    rows = weight.reshape(-1, columns)
    step = max(1, (SEARCHED_AT_ONCE if search else block_elements) // columns)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _packed(block: mx.array, format: Format, search: bool, importance: mx.array | None) -> tuple[mx.array, ...]:
    """The tensors that store (rows, C) weights."""
    plain = oracle.pack(block, format)
    return _searched(block, plain, format, importance) if search and format.scheme.is_compiled else plain


def _searched(
    block: mx.array, plain: tuple[mx.array, ...], format: Format, importance: mx.array | None
) -> tuple[mx.array, ...]:
    """The search of `search_arrays`; groups are divided by a power of two, so that no square overflows or vanishes."""
    rows, columns = block.shape
    groups = block.astype(mx.float32).reshape(-1, format.group_size)
    heights = None
    if importance is not None:
        heights = mx.broadcast_to(importance, block.shape).reshape(groups.shape)
    power = mx.clip(abs(groups).max(-1, keepdims=True).view(mx.uint32) >> 23, 1, 253).astype(mx.uint32)
    up, down = (power << 23).view(mx.float32), ((254 - power) << 23).astype(mx.uint32).view(mx.float32)
    if not format.scheme.has_bias:
        codes, byte = search_arrays.search_fp4(
            mx, groups * down, plain[1].reshape(-1, 1).astype(mx.int32), format.scheme, up, heights
        )
        return words_of(codes.reshape(rows, columns), format.bits), byte.astype(mx.uint8).reshape(rows, -1)

    def store(values: mx.array) -> mx.array:
        return (values * up).astype(block.dtype).astype(mx.float32) * down

    start = tuple(part.reshape(-1, 1).astype(mx.float32) * down for part in plain[1:])
    codes, scales, biases = search_arrays.search_affine(
        mx, groups * down, (start[0], start[1]), format.bits, DTYPE_NAMES[block.dtype], store, heights
    )
    stored = ((part * up).astype(block.dtype).reshape(rows, -1) for part in (scales, biases))
    return words_of(codes.reshape(rows, columns), format.bits), *stored


@partial(mx.compile, shapeless=True)
def _squared_difference(restored: mx.array, block: mx.array) -> mx.array:
    """(rows, C) in float32, in one pass and without a float32 copy of the block."""
    return mx.square(restored - block.astype(mx.float32))


def _row_sums(squares: mx.array) -> NDArray[np.float64]:
    """(rows, C) -> (rows,): float32 within a run, float64 over the runs."""
    rows, columns = squares.shape
    runs = squares.reshape(rows, -1, gcd(columns, RUN)).sum(-1)
    sums: NDArray[np.float64] = numpy_view(runs).sum(1, dtype=np.float64)
    return sums
