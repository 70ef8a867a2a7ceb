"""The job that packs a unit with regard to its inputs, here or in another process.

Another process gets no inputs but their second moments, half a matrix for each: fewer bytes, and the same result to the
last bit. Rows that are coupled by gradients, and matrices that learn from what outputs miss, are done where the inputs
are.
"""

# R rows of weights, C columns

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isqrt
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from mint.analysis.unit_inputs import FEWEST, WEIGHTS, Inputs
from mint.analysis.unit_jobs import Checksummed, Packed, PackedParts, Quantize
from mint.core.progress import ignore
from mint.formats.format import KEEP, Format, parse_format
from mint.formats.units import Unit, parts_of
from mint.kernels.compensation import Compensator, OnCpu, compensator
from mint.kernels.compiled import Raw, values_of
from mint.kernels.coupling import Coupling, pack_coupled
from mint.kernels.cpu import pack
from mint.kernels.ready import ready_kernels
from mint.kernels.storage import raw
from mint.kernels.warmup import WRITE
from mint.model.checkpoint.writer import WeightFiles
from mint.model.passes.gradients import Gradients
from mint.model.source import Source
from mint.run.job import BlockJob, Blocks, PortableJob

Moments = npt.NDArray[np.float32]

SEARCH = "search"  # the rounding of units without inputs
_ROUNDING = "compensate"  # its kernels are needed
_MATRICES = 4 + 4 + 8 + 8  # bytes of an element of moments and U, and of both in float64 while they are factored
_NONE = -1  # in place of the number of a matrix of moments


@dataclass(eq=False, slots=True)
class Compensation(BlockJob[Packed], PortableJob[Packed]):
    """Packs a unit, given the inputs of the units of its stage, or as `received` their second moments."""

    name: ClassVar[str] = "compensate"
    formats: Mapping[str, Format]
    checksums: Mapping[str, str]  # of the measured weights
    inputs: Mapping[str, Inputs]
    gradients: Gradients | None = None
    source: Source | None = None
    files: WeightFiles | None = None
    received: Mapping[str, Sequence[Moments | None]] = field(default_factory=dict)  # by path, then matrix of a stack
    sends: bool = False  # results go to another process
    _curvatures: dict[tuple[int, bool], Any] = field(default_factory=dict, init=False)

    def of(self, units: Sequence[Unit]) -> Self:
        """The job for some of its units, which alone are told to others."""
        paths = [unit.path for unit in units]
        return replace(
            self,
            formats={path: self.formats[path] for path in paths},
            checksums={path: self.checksums[path] for path in paths},
            inputs={path: self.inputs[path] for path in paths if path in self.inputs},
        )

    def is_portable(self, unit: Unit) -> bool:
        """True if another process needs no inputs."""
        inputs = self.inputs.get(unit.path)
        return inputs is None or (inputs.missing is None and not self._is_coupled(unit.path))

    def takes_rows(self, unit: Unit) -> bool:
        return self._is_quantized_alone(unit)

    def of_blocks(self, unit: Unit, blocks: Blocks) -> Packed:
        """The bytes of `unit`."""
        if self._is_quantized_alone(unit):
            return self._quantize().of_blocks(unit, blocks)
        checked, packed = Checksummed(unit, blocks), PackedParts(unit, self.formats[unit.path], self.files)
        coupling = self._coupling(unit)
        for slices, block in checked():
            matrices = enumerate(raw(block), slices.start)
            parts = [self._matrix(unit, coupling, index, matrix) for index, matrix in matrices]
            packed.fill(slices, [np.stack(part) for part in zip(*parts, strict=True)])
        checked.check(self.checksums)
        return packed.packed()

    def _quantize(self) -> Quantize:
        """The job of units that have no inputs."""
        return Quantize(self.formats, self.checksums, SEARCH, self.source, self.files, self.sends)

    def _is_quantized_alone(self, unit: Unit) -> bool:
        """True if no later column compensates an error."""
        format, path = self.formats[unit.path], unit.path
        return (
            (path not in self.inputs and path not in self.received) or format == KEEP or not format.scheme.is_compiled
        )

    def _matrix(self, unit: Unit, coupling: Coupling | None, index: int, matrix: Raw) -> tuple[Any, ...]:
        """The tensors that store one matrix (R, C) of a stack."""
        inputs = self.inputs.get(unit.path)
        if inputs and inputs.missing is not None:
            values = values_of(matrix, unit.dtype)
            matrix = self._compensator(unit.path).with_outputs(values, inputs.of(index), inputs.missing)
        curvature = self._received(unit.path, index) if inputs is None else self._curvature(unit.path, inputs, index)
        if curvature is None:
            return tuple(part[0] for part in pack(matrix[None], unit.dtype, self.formats[unit.path], search=True))
        return self._pack(matrix, unit, curvature, coupling)

    def _pack(self, matrix: Raw, unit: Unit, curvature: Any, coupling: Coupling | None) -> tuple[Any, ...]:
        """The parts of a matrix (R, C), packed in blocks of rows: a head has hundreds of thousands."""
        if coupling is not None:
            return pack_coupled(matrix, unit.dtype, self.formats[unit.path], curvature, coupling)
        blocks = (matrix[rows] for rows in parts_of(matrix.shape, WEIGHTS))
        rounded, format = self._compensator(unit.path).pack, self.formats[unit.path]
        packed = [rounded(block, unit.dtype, format, curvature) for block in blocks]
        return tuple(np.concatenate(parts) for parts in zip(*packed, strict=True))

    def _coupling(self, unit: Unit) -> Coupling | None:
        """The coupling of the rows of a unit; None without gradients."""
        rows = self.gradients.of(unit.path) if self.gradients else None
        return None if rows is None else Coupling.of(rows)

    def _is_coupled(self, path: str) -> bool:
        return self.gradients is not None and path in self.gradients

    def _compensator(self, path: str) -> Compensator:
        """That of the backend; rows are coupled on the CPU."""
        return OnCpu() if self._is_coupled(path) else compensator()

    def _curvature(self, path: str, inputs: Inputs, index: int) -> Any:
        """The curvature of the inputs of one matrix; None if they are too few. Units may share it."""
        rows, device = inputs.of(index), self._compensator(path)
        if inputs.experts is not None:
            return None if len(rows) < FEWEST else device.curvature_of(rows)
        key = id(rows), self._is_coupled(path)
        if key not in self._curvatures:
            self._curvatures[key] = device.curvature_of(rows)
        return self._curvatures[key]

    def _received(self, path: str, index: int) -> Any:
        """The curvature of the moments that came for one matrix; None if none came."""
        received = self.received[path]
        moments = received[index if len(received) > 1 else 0]
        if moments is None:
            return None
        device, key = self._compensator(path), (id(moments), False)
        if len(received) > 1:
            return device.curvature(moments)
        if key not in self._curvatures:
            self._curvatures[key] = device.curvature(moments)
        return self._curvatures[key]

    def prepare(self, previous: PortableJob[Any] | None) -> None:
        ready_kernels(_ROUNDING, ignore, (WRITE,))

    def to_dict(self) -> dict[str, Any]:
        matrices, numbers, uses = list[bytes](), dict[int, int](), dict[str, list[int]]()
        for path, inputs in self.inputs.items():
            if inputs.experts is None:
                if id(inputs.rows) not in numbers:
                    numbers[id(inputs.rows)] = len(matrices)
                    matrices.append(_upper_half(self._compensator(path).moments(inputs.rows)))
                uses[path] = [numbers[id(inputs.rows)]]
                continue
            uses[path] = []
            for index in range(self._experts(path)):
                rows = inputs.of(index)
                uses[path].append(_NONE if len(rows) < FEWEST else len(matrices))
                if len(rows) >= FEWEST:
                    matrices.append(_upper_half(self._compensator(path).moments(rows)))
        formats = {path: str(format) for path, format in self.formats.items()}
        return {"formats": formats, "checksums": dict(self.checksums), "moments": matrices, "uses": uses}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], source: Source) -> Self:
        formats = {path: parse_format(text) for path, text in fields["formats"].items()}
        moments = [_whole(half) for half in fields["moments"]]
        received = {
            path: [None if number == _NONE else moments[number] for number in numbers]
            for path, numbers in fields["uses"].items()
        }
        return cls(formats, fields["checksums"], {}, source=source, received=received, sends=True)

    def encode(self, result: Packed) -> Iterable[bytes | memoryview]:
        return self._quantize().encode(result)

    def decode(self, unit: Unit, data: memoryview) -> Packed:
        return self._quantize().decode(unit, data)

    def result_nbytes(self, unit: Unit) -> int:
        return self._quantize().result_nbytes(unit)

    def working_bytes(self, unit: Unit) -> int:
        return 0 if self._is_quantized_alone(unit) else _MATRICES * unit.shape[-1] ** 2

    def told_nbytes(self) -> int:
        rows = {id(inputs.rows): inputs.rows.shape[1] for inputs in self.inputs.values() if inputs.experts is None}
        columns = [*rows.values()]
        for path, inputs in self.inputs.items():
            if inputs.experts is not None:
                columns += [inputs.rows.shape[1]] * self._experts(path)
        return sum(2 * count * count for count in columns)

    def _experts(self, path: str) -> int:
        assert self.source
        slices: int = next(unit.slices for unit in self.source.units if unit.path == path)
        return slices


@dataclass(frozen=True, slots=True)
class InThisProcess(BlockJob[Packed]):
    """The same job, for units that are not portable."""

    job: Compensation

    def takes_rows(self, unit: Unit) -> bool:
        return self.job.takes_rows(unit)

    def of_blocks(self, unit: Unit, blocks: Blocks) -> Packed:
        return self.job.of_blocks(unit, blocks)


def _upper_half(moments: Moments) -> bytes:
    """A symmetric matrix (C, C) as bytes, without what lies below its diagonal."""
    return b"".join(moments[row, row:].tobytes() for row in range(len(moments)))


def _whole(half: bytes) -> Moments:
    """The symmetric matrix (C, C) of `_upper_half`."""
    values = np.frombuffer(half, np.float32)
    columns = isqrt(2 * values.size)
    moments, start = np.empty((columns, columns), np.float32), 0
    for row in range(columns):
        moments[row, row:] = moments[row:, row] = values[start : start + columns - row]
        start += columns - row
    return moments
