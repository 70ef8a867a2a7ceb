"""Compensated rounding where the backend does it: with kernels of a GPU, or with the compiled ones of the CPU."""

# T rows of inputs, R rows of weights, C columns

from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from mint.formats.format import Format
from mint.kernels.backend import backend
from mint.kernels.compensate import Curvature, in_range, pack_compensated, second_moments
from mint.kernels.compiled import Floats, Raw
from mint.kernels.fused_rounding import DeviceCurvature, FusedRounding, device_moments
from mint.kernels.missing_outputs import DeviceAlgebra, Missing, with_outputs
from mint.kernels.storage import MLX_DTYPES, from_raw, numpy_view, raw


class Compensator(Protocol):
    """Where matrices are rounded with regard to their inputs; a curvature is used where it was made."""

    def moments(self, inputs: Floats) -> Floats:
        """The second moments (C, C) of the rows (T, C), symmetric to the last bit."""

    def curvature(self, moments: Floats) -> Any:
        """The curvature of second moments (C, C)."""

    def curvature_of(self, inputs: Floats) -> Any:
        """The curvature of the rows (T, C): that of their moments."""

    def with_outputs(self, weight: Floats, inputs: Floats, missing: Missing) -> Floats:
        """Weights (R, C) whose outputs have what is missing more for rows (T, C), as `with_outputs` gives them."""

    def pack(self, weight: Raw, dtype: str, format: Format, curvature: Any) -> tuple[Any, ...]:
        """The tensors that store (R, C) weights, as `pack_compensated` gives them."""


class OnCpu:
    """The compiled kernels."""

    def moments(self, inputs: Floats) -> Floats:
        return second_moments(in_range(inputs)).astype(np.float32)

    def curvature(self, moments: Floats) -> Curvature:
        return Curvature.of_moments(moments)

    def curvature_of(self, inputs: Floats) -> Curvature:
        return Curvature.of(inputs)

    def with_outputs(self, weight: Floats, inputs: Floats, missing: Missing) -> Floats:
        return with_outputs(weight, inputs, missing)

    def pack(self, weight: Raw, dtype: str, format: Format, curvature: Curvature) -> tuple[Any, ...]:
        return pack_compensated(weight, dtype, format, curvature)


@dataclass(frozen=True, slots=True)
class OnDevice:
    """The kernels of a GPU."""

    fused: FusedRounding

    def moments(self, inputs: Floats) -> Floats:
        return numpy_view(device_moments(in_range(inputs)))

    def curvature(self, moments: Floats) -> DeviceCurvature:
        return self._curvature(mx.array(moments))

    def curvature_of(self, inputs: Floats) -> DeviceCurvature:
        return self._curvature(device_moments(in_range(inputs)))

    def _curvature(self, moments: mx.array) -> DeviceCurvature:
        try:
            return DeviceCurvature.of_moments(moments)
        except np.linalg.LinAlgError:  # float32 has too few digits for these inputs
            exact = Curvature.of_moments(numpy_view(moments))
            return DeviceCurvature(moments, mx.array(exact.upper))

    def with_outputs(self, weight: Floats, inputs: Floats, missing: Missing) -> Floats:
        return with_outputs(weight, inputs, missing, DeviceAlgebra())

    def pack(self, weight: Raw, dtype: str, format: Format, curvature: DeviceCurvature) -> tuple[Any, ...]:
        array = mx.array(weight) if weight.dtype == np.float32 else from_raw(weight, dtype)
        return tuple(map(raw, self.fused.pack(array, MLX_DTYPES[dtype], format, curvature)))


def compensator() -> Compensator:
    """That of the backend."""
    fused = backend().fused_rounding
    return OnDevice(fused) if fused else OnCpu()
