"""The only two jobs: measure a unit, and quantize a unit into a format.

Each takes a unit and its evaluated weight, and runs wherever an executor puts it. On the CPU both go through the
fused kernel, on a GPU through MLX operations; what is measured is what that device will write.
"""

# S slices (experts; 1 for a plain matrix), R rows, C columns, F formats

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mint.analysis.analysis import Measurement
from mint.core.progress import OnProgress, Progress
from mint.formats.format import KEEP, MEASURED, Format, TensorSpec
from mint.formats.units import Unit
from mint.kernels.warmup import FEATURES, begin_to_make_ready, compile_all, is_ready, make_ready
from mint.model.checkpoint.shards import SourceTensor

_GPU_BLOCK = 64 << 20  # weights, BLOCK_ELEMENTS of mint/kernels/gpu.py
_GPU_BLOCK_BYTES = 6 * 4  # for each: a few float32 arrays that a lazy graph holds at once
_RAW = {"BF16": (mx.uint16, np.uint16), "F16": (mx.uint16, np.uint16), "F32": (mx.float32, np.float32)}


@dataclass(frozen=True, slots=True)
class Packed:
    """A unit as it will be stored: the tensors of its format and their bytes, in the same order."""

    path: str
    format: Format
    tensors: tuple[TensorSpec, ...]
    data: tuple[bytes | memoryview, ...]
    sha256: str = ""  # of all the data, where it was just computed


def peak_bytes(unit: Unit, tensors: Mapping[str, SourceTensor]) -> int:
    """About the most memory that either job takes while it streams units, the largest first, from source `tensors`.

    What the weight is made of, the weight, a copy of it or its packed form; the next weight, which is no larger, read
    meanwhile; and on a GPU the float32 blocks that it computes in.
    """
    sources = sum(tensors[name].nbytes for name in unit.sources)
    blocks = min(unit.size, _GPU_BLOCK) * _GPU_BLOCK_BYTES if mx.default_device() == mx.gpu else 0
    return 2 * (sources + unit.nbytes) + unit.nbytes + blocks


def measure(unit: Unit, weight: mx.array, rounding: str = "nearest") -> Measurement:
    """Squared relative errors of `unit` in every format that it admits; `weight` is evaluated, of `unit.shape`.

    Those of `rounding`, or of what is MEASURED in its place. Weights that are NaN or infinite are counted in
    `nonfinite`; the errors then mean nothing.
    """
    formats = tuple(format for format in unit.formats if format != KEEP)
    if not formats:
        return Measurement(unit.path, (), (), (), 0.0)
    rounding = MEASURED[rounding]
    if mx.default_device() == mx.gpu:
        from mint.kernels.gpu import errors as gpu_errors

        found = gpu_errors(weight.reshape(_stack(unit)), formats, rounding=rounding)
    else:
        from mint.kernels.cpu import errors as cpu_errors

        stack = raw(weight, unit.dtype).reshape(_stack(unit))
        found = cpu_errors(stack, unit.dtype, formats, rounding=rounding)
    if found.nonfinite:
        zeros = (0.0,) * len(formats)
        return Measurement(unit.path, formats, zeros, zeros, 0.0, int(found.nonfinite))
    energy = found.energy.sum()
    slice_errors = _ratio(found.squared, found.energy[:, None])
    return Measurement(
        path=unit.path,
        formats=formats,
        errors=tuple(map(float, _ratio(found.squared.sum(axis=0), energy))),
        worst_errors=tuple(map(float, slice_errors.max(axis=0))),
        energy=float(energy),
        slice_errors=slice_errors.astype("<f4").tobytes() if unit.slices > 1 else b"",
    )


def measure_with_features(
    unit: Unit, weight: mx.array, gains: Mapping[str, npt.NDArray[np.float32]], rounding: str = "nearest"
) -> Measurement:
    """What `measure` finds, and the unit's features; none where no group size divides its rows or weights are bad.

    `gains` are those of the norms before units, by their path.
    """
    from mint.analysis.features import features, group_size_of

    found = measure(unit, weight, rounding)
    if not found.formats or found.nonfinite or not group_size_of(unit.shape[-1]):
        return found
    stack = raw(weight, unit.dtype).reshape(_stack(unit))
    return replace(found, features=features(stack, unit.dtype, unit.path, gains.get(unit.path)))


def quantize_unit(unit: Unit, weight: mx.array, format: Format, rounding: str = "nearest") -> Packed:
    """The bytes of `unit` stored in `format`; rounded to nearest, as `mx.quantize` writes them on this device."""
    tensors = format.tensors(unit.path, unit.shape, unit.dtype)
    if format == KEEP:
        return Packed(unit.path, format, tensors, (raw_bytes(weight),))
    if mx.default_device() == mx.gpu:
        from mint.kernels.gpu import pack as gpu_pack

        arrays = gpu_pack(weight.reshape(_stack(unit)), format, rounding=rounding)
        parts = [raw_bytes(part) for part in arrays]
    else:
        from mint.kernels.cpu import pack as cpu_pack

        stack = raw(weight, unit.dtype).reshape(_stack(unit))
        written = cpu_pack(stack, unit.dtype, format, rounding=rounding)
        parts = [memoryview(array).cast("B") for array in written]
    return Packed(unit.path, format, tensors, tuple(parts))


def quantize_as_planned(formats: Mapping[str, Format], rounding: str, unit: Unit, weight: mx.array) -> Packed:
    """`quantize_unit` in the format that `formats` has for its path."""
    return quantize_unit(unit, weight, formats[unit.path], rounding)


def ready_kernels(rounding: str, on_progress: OnProgress, *, featured: bool = False) -> None:
    """Compile what this device needs compiled, before any weight takes memory."""
    kinds = [] if mx.default_device() == mx.gpu else [rounding]
    kinds += [FEATURES] if featured else []  # on any device
    kinds = [kind for kind in kinds if not is_ready(kind)]
    for count, kind in enumerate(kinds):
        on_progress(Progress("compile", count, len(kinds), "kernels, once"))
        make_ready(kind)
        on_progress(Progress("compile", count + 1, len(kinds), ""))


def warm_kernels(rounding: str) -> "subprocess.Popen[bytes] | None":
    """Load what this device needs compiled, so that the first unit does not wait for it.

    Where it is not compiled yet that begins, in the process that is returned; to be loaded once that has ended.
    `ready_kernels` waits for it too.
    """
    if mx.default_device() == mx.gpu:
        return None
    if not is_ready(rounding):
        return begin_to_make_ready(rounding)
    compile_all(rounding)
    return None


def raw(weight: mx.array, dtype: str) -> npt.NDArray[np.uint16] | npt.NDArray[np.float32]:
    """The weight's memory as numpy sees it, without a copy where it is contiguous; 16-bit floats as bit patterns."""
    view, _ = _RAW[dtype]
    return np.asarray(_contiguous(weight).view(view, stream=mx.cpu))


def raw_bytes(array: mx.array) -> memoryview:
    """The bytes of an array of any dtype, row-major."""
    flat = _contiguous(array).reshape(-1, stream=mx.cpu)
    if flat.dtype == mx.bfloat16:
        flat = flat.view(mx.uint16, stream=mx.cpu)
    mx.eval(flat)
    return np.asarray(flat).data.cast("B")


def _contiguous(array: mx.array) -> mx.array:
    return mx.contiguous(array, stream=mx.cpu)


def _stack(unit: Unit) -> tuple[int, int, int]:
    return unit.slices, unit.shape[-2], unit.shape[-1]


def _ratio(squared: npt.NDArray[np.float64], energy: npt.NDArray[np.float64] | np.float64) -> npt.NDArray[np.float64]:
    """squared / energy; a weight that is all zero has no error, whatever its scale became."""
    return np.divide(squared, energy, out=np.zeros(squared.shape), where=energy > 0)
