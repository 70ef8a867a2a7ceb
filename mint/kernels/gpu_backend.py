"""The backend of Metal and CUDA devices: MLX operations, no compiler."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mint.formats.format import Format
from mint.formats.rounding import Rounding
from mint.kernels import gpu, oracle
from mint.kernels.distortion import Errors
from mint.kernels.storage import raw
from mint.targets.devices import this_device

_WORKING_BYTES = 6 * 4  # of each weight of a block: a few float32 arrays that a lazy graph holds at once


@dataclass(frozen=True, slots=True)
class GpuBackend:
    """A GPU that MLX drives; what it writes is what its own `mx.quantize` writes."""

    roundings: tuple[str, ...] = ("nearest", "search")
    runs_stored_weights: bool = True
    unpacks_lazily: bool = True
    fuses_functions: bool = True
    uses_blas: bool = False

    @property
    def kind(self) -> str:
        return f"gpu {mx.device_info().get('device_name', 'unknown')}"

    def memory_bytes(self) -> int:
        """The working set that Metal or CUDA recommends."""
        return this_device().working_set_bytes

    def working_bytes(self, weights: int) -> int:
        """The float32 arrays of one block of rows."""
        return min(weights, gpu.BLOCK_ELEMENTS) * _WORKING_BYTES

    def kernel_sets(self, rounding: Rounding) -> tuple[str, ...]:
        return ()

    def errors(self, weight: mx.array, formats: Sequence[Format], rounding: Rounding) -> Errors:
        return gpu.errors(weight, formats, search=rounding.searches)

    def pack(self, weight: mx.array, format: Format, rounding: Rounding) -> tuple[Any, ...]:
        return tuple(map(raw, gpu.pack(weight, format, search=rounding.searches)))

    def unpack(self, parts: Sequence[mx.array], format: Format) -> mx.array:
        return oracle.dequantize(tuple(parts), format)

    def multiply(self, vectors: mx.array, parts: Sequence[mx.array], format: Format) -> mx.array:
        product = vectors @ self.unpack(parts, format).T
        mx.eval(product)
        return product
