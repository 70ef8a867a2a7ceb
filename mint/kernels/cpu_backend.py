"""The backend of CPUs: fused kernels, whose sums have an order that no processor and no thread count changes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from mint.core.memory import memory_bytes
from mint.formats.format import Format
from mint.formats.rounding import Rounding
from mint.kernels import cpu, oracle, unpack
from mint.kernels.distortion import Errors
from mint.kernels.storage import DTYPE_NAMES, raw


@dataclass(frozen=True, slots=True)
class CpuBackend:
    """Any CPU. Products of float32 matrices are what it multiplies fast; of bf16 or packed ones 10-20 times slower."""

    kind: str = "cpu"
    roundings: tuple[str, ...] = ("nearest", "search")
    runs_stored_weights: bool = False
    unpacks_lazily: bool = False
    fuses_functions: bool = False
    uses_blas: bool = True

    def memory_bytes(self) -> int:
        return memory_bytes()

    def working_bytes(self, weights: int) -> int:
        """None: a block of weights stays in the cache."""
        return 0

    def kernel_sets(self, rounding: Rounding) -> tuple[str, ...]:
        return (rounding.name if rounding.sequential else rounding.measured_as,)

    def errors(self, weight: mx.array, formats: Sequence[Format], rounding: Rounding) -> Errors:
        compiled = tuple(format for format in formats if format.scheme.is_compiled)
        measured = cpu.errors(raw(weight), DTYPE_NAMES[weight.dtype], compiled, search=rounding.searches)
        if len(compiled) == len(formats):
            return measured
        squared = dict(zip(compiled, measured.squared.T, strict=True))
        for format in formats:
            if format not in squared:
                parts = (oracle.errors(weight[index : index + 1], [format]) for index in range(len(weight)))
                squared[format] = np.concatenate([part.squared[:, 0] for part in parts])
        return replace(measured, squared=np.stack([squared[format] for format in formats], axis=1))

    def pack(self, weight: mx.array, format: Format, rounding: Rounding) -> tuple[Any, ...]:
        if not format.scheme.is_compiled:
            return tuple(map(raw, oracle.pack(weight, format)))
        return cpu.pack(raw(weight), DTYPE_NAMES[weight.dtype], format, search=rounding.searches)

    def unpack(self, parts: Sequence[mx.array], format: Format) -> mx.array:
        if not format.scheme.is_compiled:
            return oracle.dequantize(tuple(parts), format)
        return unpack.unpack(list(map(raw, parts)), _scale_dtype(parts), format)

    def multiply(self, vectors: mx.array, parts: Sequence[mx.array], format: Format) -> mx.array:
        if not format.scheme.is_compiled:
            return vectors @ oracle.dequantize(tuple(parts), format).T
        return mx.array(unpack.multiply(list(map(raw, parts)), _scale_dtype(parts), format, raw(vectors)))


def _scale_dtype(parts: Sequence[mx.array]) -> str:
    """The dtype of scales, as safetensors calls that of a weight; empty where scales are bytes."""
    return DTYPE_NAMES.get(parts[1].dtype, "")
