"""The two jobs that stream weights: measure a unit, and quantize a unit into a format.

Each takes a unit and its evaluated weight, and runs wherever an executor puts it, on the backend of that device:
what is measured is what that device will write.
"""

# S slices (experts; 1 for a plain matrix), R rows, C columns, F formats

import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import mlx.core as mx
import msgpack
import numpy as np
import numpy.typing as npt

from mint.analysis.analysis import Measurement, from_record, to_record
from mint.analysis.cross_device import difference
from mint.core.errors import MintError
from mint.core.progress import OnProgress, Progress, ignore
from mint.formats.format import KEEP, Format, TensorSpec, parse_format
from mint.formats.rounding import ROUNDINGS
from mint.formats.units import Unit
from mint.kernels.backend import backend
from mint.kernels.storage import raw, raw_bytes
from mint.kernels.warmup import FEATURES, begin_to_make_ready, compile_all, is_ready, make_ready
from mint.model.checkpoint.shards import SourceTensor
from mint.model.source import Source
from mint.run.job import Difference, PortableJob


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
    meanwhile; and what the backend computes in.
    """
    sources = sum(tensors[name].nbytes for name in unit.sources)
    return 2 * (sources + unit.nbytes) + unit.nbytes + backend().working_bytes(unit.size)


def measure(unit: Unit, weight: mx.array, rounding: str = "nearest") -> Measurement:
    """Squared relative errors of `unit` in every format that it admits; `weight` is evaluated, of `unit.shape`.

    Those of `rounding`, or of the one that is measured in its place. Weights that are NaN or infinite are counted in
    `nonfinite`; the errors then mean nothing.
    """
    formats = tuple(format for format in unit.formats if format != KEEP)
    if not formats:
        return Measurement(unit.path, (), (), (), 0.0)
    measured = ROUNDINGS[ROUNDINGS[rounding].measured_as]
    found = backend().errors(weight.reshape(_stack(unit)), formats, measured)
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
    stack = raw(weight).reshape(_stack(unit))
    return replace(found, features=features(stack, unit.dtype, unit.path, gains.get(unit.path)))


def quantize_unit(unit: Unit, weight: mx.array, format: Format, rounding: str = "nearest") -> Packed:
    """The bytes of `unit` stored in `format`; rounded to nearest, as `mx.quantize` writes them on this device."""
    tensors = format.tensors(unit.path, unit.shape, unit.dtype)
    if format == KEEP:
        return Packed(unit.path, format, tensors, (raw_bytes(weight),))
    arrays = backend().pack(weight.reshape(_stack(unit)), format, ROUNDINGS[rounding])
    return Packed(unit.path, format, tensors, tuple(memoryview(array).cast("B") for array in arrays))


@dataclass(frozen=True, slots=True)
class Measure(PortableJob[Measurement]):
    """`measure` as a job."""

    name: ClassVar[str] = "measure"
    any_device: ClassVar[bool] = True
    rounding: str = "nearest"

    def __call__(self, unit: Unit, weight: mx.array) -> Measurement:
        return measure(unit, weight, self.rounding)

    @property
    def label(self) -> str:
        return f"{self.name} {self.rounding}"

    def to_dict(self) -> dict[str, Any]:
        return {"rounding": self.rounding}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], source: Source) -> Self:
        return cls(fields["rounding"])

    def prepare(self, previous: PortableJob[Any] | None) -> None:
        ready_kernels(self.rounding, ignore)

    def encode(self, result: Measurement) -> Iterable[bytes]:
        """The record of the analysis file, which rounds nothing."""
        return (msgpack.packb(to_record(result)),)

    def decode(self, unit: Unit, data: memoryview) -> Measurement:
        return from_record(msgpack.unpackb(data))

    def difference(self, one: Measurement, other: Measurement) -> Difference | None:
        return difference(one, other)


@dataclass(frozen=True, slots=True)
class Quantize(PortableJob[Packed]):
    """`quantize_unit` as a job, in the format that `formats` has for the unit's path."""

    name: ClassVar[str] = "quantize"
    formats: Mapping[str, Format]
    rounding: str = "nearest"

    def __call__(self, unit: Unit, weight: mx.array) -> Packed:
        return quantize_unit(unit, weight, self.formats[unit.path], self.rounding)

    @property
    def label(self) -> str:
        return f"{self.name} {self.rounding}"

    def to_dict(self) -> dict[str, Any]:
        formats = {path: str(format) for path, format in self.formats.items()}
        return {"formats": formats, "rounding": self.rounding}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], source: Source) -> Self:
        formats = {path: parse_format(text) for path, text in fields["formats"].items()}
        return cls(formats, fields["rounding"])

    def prepare(self, previous: PortableJob[Any] | None) -> None:
        ready_kernels(self.rounding, ignore)

    def encode(self, result: Packed) -> Iterable[bytes | memoryview]:
        return result.data

    def decode(self, unit: Unit, data: memoryview) -> Packed:
        """The tensors lie one behind the other."""
        format = self.formats[unit.path]
        tensors = format.tensors(unit.path, unit.shape, unit.dtype)
        if len(data) != (needed := sum(tensor.nbytes for tensor in tensors)):
            raise MintError(f"{unit.path}: {len(data)} bytes came, needed the {needed} bytes of {format}")
        parts, start = [], 0
        for tensor in tensors:
            parts.append(data[start : start + tensor.nbytes])
            start += tensor.nbytes
        return Packed(unit.path, format, tensors, tuple(parts))

    def result_nbytes(self, unit: Unit) -> int:
        return self.formats[unit.path].nbytes(unit.shape, unit.dtype)


def ready_kernels(rounding: str, on_progress: OnProgress, *, featured: bool = False) -> None:
    """Compile what this device needs compiled, before any weight takes memory."""
    kinds = (*backend().kernel_sets(ROUNDINGS[rounding]), *([FEATURES] if featured else []))
    kinds = tuple(kind for kind in kinds if not is_ready(kind))
    for count, kind in enumerate(kinds):
        on_progress(Progress("compile", count, len(kinds), "kernels, once"))
        make_ready(kind)
        on_progress(Progress("compile", count + 1, len(kinds), ""))


def warm_kernels(rounding: str) -> "subprocess.Popen[bytes] | None":
    """Load what this device needs compiled, so that the first unit does not wait for it.

    Where it is not compiled yet that begins, in the process that is returned; to be loaded once that has ended.
    `ready_kernels` waits for it too.
    """
    for kind in backend().kernel_sets(ROUNDINGS[rounding]):
        if not is_ready(kind):
            return begin_to_make_ready(kind)
        compile_all(kind)
    return None


def _stack(unit: Unit) -> tuple[int, int, int]:
    return unit.slices, unit.shape[-2], unit.shape[-1]


def _ratio(squared: npt.NDArray[np.float64], energy: npt.NDArray[np.float64] | np.float64) -> npt.NDArray[np.float64]:
    """squared / energy; a weight that is all zero has no error, whatever its scale became."""
    return np.divide(squared, energy, out=np.zeros(squared.shape), where=energy > 0)
