"""The backend of CPUs: fused kernels, whose sums have an order that no processor and no thread count changes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mint.core.memory import memory_bytes
from mint.formats.format import Format
from mint.formats.rounding import Rounding
from mint.kernels import cpu, unpack
from mint.kernels.distortion import Errors
from mint.kernels.storage import DTYPE_NAMES, raw


@dataclass(frozen=True, slots=True)
class CpuBackend:
    """Any CPU. Products of float32 matrices are what it multiplies fast; of bf16 or packed ones 10-20 times slower."""

    kind: str = "cpu"
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
        return (rounding.name,)

    def errors(self, weight: mx.array, formats: Sequence[Format], rounding: Rounding) -> Errors:
        return cpu.errors(raw(weight), DTYPE_NAMES[weight.dtype], formats, search=rounding.searches)

    def pack(self, weight: mx.array, format: Format, rounding: Rounding) -> tuple[Any, ...]:
        return cpu.pack(raw(weight), DTYPE_NAMES[weight.dtype], format, search=rounding.searches)

    def unpack(self, parts: Sequence[mx.array], format: Format) -> mx.array:
        return unpack.unpack(list(map(raw, parts)), _scale_dtype(parts), format)

    def multiply(self, vectors: mx.array, parts: Sequence[mx.array], format: Format) -> mx.array:
        return mx.array(unpack.multiply(list(map(raw, parts)), _scale_dtype(parts), format, raw(vectors)))


def _scale_dtype(parts: Sequence[mx.array]) -> str:
    """The dtype of scales, as safetensors calls that of a weight; empty where scales are bytes."""
    return DTYPE_NAMES.get(parts[1].dtype, "")
