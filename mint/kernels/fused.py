"""The fused GPU kernels of affine formats: one pass over the weights measures all of them, another packs.

Weights are cut as on the CPU, into segments of `SEGMENT` weights of a slice, and a segment's sums are added in float64
in the CPU's order. Run as CUDA on an NVIDIA H100, and as C++; no Metal device was at hand.
"""

# S slices (experts), R rows, C columns, F formats, N weights of a piece of a slice

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mint.formats.format import AFFINE, Format
from mint.kernels.fused_source import (
    CUDA,
    LANES,
    METAL,
    PACKED_TOGETHER,
    SEGMENT,
    Dialect,
    Kernel,
    measure_kernel,
    pack_kernel,
)
from mint.kernels.storage import numpy_view

_CHUNK = 64  # segments whose sums are added before those of others, as on the CPU
_PIECE = _CHUNK * SEGMENT << 8  # weights of one call: 32 Mi

Program = Callable[..., list[mx.array]]


@dataclass(frozen=True)
class FusedKernels:
    """The two kernels in a language, built at first use by `build`."""

    dialect: Dialect
    build: Callable[[Kernel], Program]

    @cached_property
    def _measure(self) -> Program:
        return self.build(measure_kernel(self.dialect))

    @cached_property
    def _pack(self) -> Program:
        return self.build(pack_kernel(self.dialect))

    def squared(self, weight: mx.array, formats: Sequence[Format]) -> NDArray[np.float64]:
        """The squared error (S, F) of each slice of (S, R, C) weights in each of these affine formats."""
        totals = np.zeros((len(weight), len(AFFINE)))
        waiting: tuple[int, mx.array] | None = None
        for piece in self._sums(weight):
            mx.async_eval(piece[1])  # the device works on it while the sums of the piece before are added
            _add(totals, waiting)
            waiting = piece
        _add(totals, waiting)
        return totals[:, [AFFINE.index(format) for format in formats]]

    def pack(self, weight: mx.array, format: Format) -> tuple[mx.array, ...]:
        """The codes, scales and biases that store (S, R, C) weights, not yet computed."""
        size, pieces = format.group_size, []
        vector = weight.reshape(-1)
        for start in range(0, vector.size, _PIECE):
            piece = vector[start : start + _PIECE]
            shapes = (piece.size * format.bits // 32,), (piece.size // size,), (piece.size // size,)
            dtypes = mx.uint32, weight.dtype, weight.dtype
            threads, numbers = piece.size // PACKED_TOGETHER, (format.bits, size)
            pieces.append(_call(self._pack, pack_kernel(self.dialect), piece, numbers, threads, shapes, dtypes))
        return tuple(mx.concatenate(list(part)).reshape(*weight.shape[:2], -1) for part in zip(*pieces, strict=True))

    def _sums(self, weight: mx.array) -> Iterator[tuple[int, mx.array]]:
        """The slice of each piece, and its sums (N / SEGMENT, LANES, F) in float32."""
        kernel = measure_kernel(self.dialect)
        for index, slice_weights in enumerate(weight.reshape(len(weight), -1)):
            for start in range(0, slice_weights.size, _PIECE):
                piece = slice_weights[start : start + _PIECE]
                segments = -(-piece.size // SEGMENT)
                shapes = ((segments, LANES, len(AFFINE)),)
                threads = segments * kernel.threads
                yield index, _call(self._measure, kernel, piece, (), threads, shapes, (mx.float32,))[0]


def _call(
    program: Program,
    kernel: Kernel,
    piece: mx.array,
    numbers: tuple[int, ...],
    threads: int,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[mx.Dtype],
) -> list[mx.array]:
    return program(
        inputs=[piece, mx.array([piece.size, *numbers], mx.uint32)],
        template=[("T", piece.dtype)],
        grid=(-(-threads // kernel.threads) * kernel.threads, 1, 1),
        threadgroup=(kernel.threads, 1, 1),
        output_shapes=list(shapes),
        output_dtypes=list(dtypes),
    )


def _add(totals: NDArray[np.float64], piece: tuple[int, mx.array] | None) -> None:
    """Add the sums of a piece to the totals (S, F) one after the other, a chunk of segments at a time."""
    if piece is None:
        return
    index, sums = piece[0], numpy_view(piece[1]).reshape(-1, len(AFFINE))
    for start in range(0, len(sums), _CHUNK * LANES):
        totals[index] += sums[start : start + _CHUNK * LANES].sum(axis=0, dtype=np.float64)  # in order


def this_gpu() -> FusedKernels | None:
    """The kernels in the language of MLX's device; None without a GPU."""
    languages: tuple[tuple[Any, Dialect, Any], ...] = (
        (mx.metal, METAL, mx.fast.metal_kernel),
        (mx.cuda, CUDA, mx.fast.cuda_kernel),
    )
    for device, dialect, maker in languages:
        if device.is_available():
            return FusedKernels(dialect, partial(_built, maker))
    return None


def _built(maker: Callable[..., Program], kernel: Kernel) -> Program:
    return maker(
        name=kernel.name,
        input_names=kernel.inputs,
        output_names=kernel.outputs,
        source=kernel.body,
        header=kernel.header,
    )
