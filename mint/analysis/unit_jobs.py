"""The two jobs that stream weights: measure a unit, and quantize a unit into a format.

They run wherever an executor puts them, on the backend of that device: it measures what it would write.
"""

# S slices (experts; 1 for a plain matrix), R rows, C columns, F formats

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, ClassVar, Self

import mlx.core as mx
import msgpack
import numpy as np
import numpy.typing as npt
import xxhash

from mint.analysis.analysis import Measurement
from mint.analysis.cross_device import difference
from mint.core.errors import MintError
from mint.core.progress import ignore
from mint.core.records import typed
from mint.formats.format import KEEP, Format, TensorSpec, parse_format
from mint.formats.rounding import DEFAULT_ROUNDING, ROUNDINGS, parse_rounding
from mint.formats.units import Unit
from mint.kernels.backend import backend
from mint.kernels.exact import OnGrid, stored_on_grid
from mint.kernels.oracle import joined
from mint.kernels.ready import ready_kernels
from mint.kernels.storage import raw, raw_bytes
from mint.kernels.warmup import MEASURE, WRITE
from mint.model.checkpoint.reader import ALL, FLOATS, nonfinite_count
from mint.model.checkpoint.shards import SourceTensor
from mint.model.checkpoint.writer import WeightFiles
from mint.model.source import Source
from mint.run.job import BlockJob, Blocks, Difference, PortableJob, T, numbered
from mint.run.stacks import BLOCK, comes_in_blocks, held_bytes


@dataclass(frozen=True, slots=True)
class Packed:
    """A unit as stored: the tensors of its format and their bytes, in the same order."""

    path: str
    format: Format
    tensors: tuple[TensorSpec, ...]
    data: tuple[bytes | memoryview, ...]  # none where the weight files have them already
    sha256: str = ""  # of all the data, if known


def peak_bytes(source: Source, unit: Unit, tensors: Mapping[str, SourceTensor]) -> int:
    """Approximate peak memory of either job from `unit` on, the largest unit first; `tensors` are those of `source`.

    The tensors of the weight, the weight, a copy or its packed form; the next weight, which is no larger, read
    meanwhile; and the working memory of the backend. Of a stack in blocks only the packed form is whole.
    """
    if comes_in_blocks(source, unit):
        return held_bytes(source, unit) + unit.nbytes + backend().working_bytes(BLOCK)
    stored = sum(tensors[name].nbytes for name in unit.sources)
    return 2 * (stored + unit.nbytes) + unit.nbytes + backend().working_bytes(unit.size)


class Checksummed:
    """Blocks of a weight, and the checksum of its bytes after a whole pass over them."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self.checksum = ""

    def __call__(self) -> Iterator[tuple[slice, mx.array]]:
        """Every block with its slices of the stack."""
        digest = xxhash.xxh3_64()
        for slices, block in numbered(self._blocks):
            digest.update(raw_bytes(block))
            yield slices, block
        self.checksum = digest.hexdigest()

    def check(self, unit: Unit, checksums: Mapping[str, str]) -> None:
        """Raise `MintError` unless the blocks are those of the weight that was measured."""
        check_analyzed(f"unit {unit.path}: its weight is", self.checksum, checksums[unit.path])


class PackedParts:
    """The tensors of a stack in a format, filled block by block; with `files`, blocks are written there at once."""

    def __init__(self, unit: Unit, format: Format, files: WeightFiles | None = None) -> None:
        self.unit, self.format, self._files = unit, format, files
        self.tensors = format.tensors(unit.path, unit.shape, unit.dtype)
        self._arrays: list[Any] = []  # of numpy

    def fill(self, slices: slice, parts: Sequence[npt.NDArray[Any]]) -> None:
        """Take the tensors of some slices, in the order of `Format.tensors`."""
        if slices.stop - slices.start == self.unit.slices:
            self._arrays = list(parts)  # without a copy
            return
        if self._files:
            for tensor, part in zip(self.tensors, parts, strict=True):
                self._files.write_piece(tensor, part.reshape(-1).view("u1").data, slices.start * part[0].nbytes)
            return
        if not self._arrays:
            self._arrays = [np.empty((self.unit.slices, *part.shape[1:]), part.dtype) for part in parts]
        for array, part in zip(self._arrays, parts, strict=True):
            array[slices] = part

    def packed(self) -> Packed:
        """The whole unit."""
        data = tuple(memoryview(array).cast("B") for array in self._arrays)
        return Packed(self.unit.path, self.format, self.tensors, data)


class RoundingJob(BlockJob[T], PortableJob[T]):
    """A job that depends on the rounding, by its compiled kernels."""

    work: ClassVar[str]  # of the kernels
    rounding: str

    @property
    def label(self) -> str:
        return f"{self.name} {self.rounding}"

    def prepare(self, previous: PortableJob[Any] | None) -> None:
        ready_kernels(self.rounding, ignore, (self.work,))


@dataclass(frozen=True, slots=True)
class Measure(RoundingJob[Measurement]):
    """Squared relative errors of a unit in every format that it admits."""

    name: ClassVar[str] = "measure"
    work: ClassVar[str] = MEASURE
    any_device: ClassVar[bool] = True
    rounding: str = DEFAULT_ROUNDING
    carried: Mapping[str, Format] = field(default_factory=dict, kw_only=True)  # `Source.carried`

    def of_blocks(self, unit: Unit, blocks: Blocks) -> Measurement:
        """The errors for `rounding`, or for the one measured in its place.

        NaN and infinite weights are counted in `nonfinite`; the errors then mean nothing.
        """
        checked = Checksummed(blocks)
        measurement = self._measured(unit, checked)
        return replace(measurement, checksum=checked.checksum)

    def _measured(self, unit: Unit, blocks: Checksummed) -> Measurement:
        formats = tuple(format for format in unit.formats if format != KEEP)
        if not formats:
            is_float = unit.dtype in FLOATS
            nonfinite = sum(nonfinite_count(raw(block), unit.dtype) if is_float else 0 for _, block in blocks())
            return Measurement(unit.path, (), (), (), 0.0, nonfinite)
        rounding = ROUNDINGS[self.rounding]
        measured = ROUNDINGS[rounding.measured_as]
        errors = joined([backend().errors(block, formats, measured) for _, block in blocks()])
        if errors.nonfinite:
            zeros = (0.0,) * len(formats)
            return Measurement(unit.path, formats, zeros, zeros, 0.0, int(errors.nonfinite))
        errors.squared[:] *= np.array([rounding.shares.get(str(format), 1.0) for format in formats])
        on_grid: dict[Format, npt.NDArray[np.float64]] = defaultdict(lambda: np.empty(unit.slices))

        def take(slices: slice, stored: OnGrid) -> None:
            on_grid[stored.format][slices] = stored.squared

        for grid in stored_on_grid(blocks, formats, take):
            errors.squared[:, formats.index(grid)] = on_grid[grid]
        if unit.path in self.carried:
            errors.squared[:, formats.index(self.carried[unit.path])] = 0.0
        energy = errors.energy.sum()
        slice_errors = _ratio(errors.squared, errors.energy[:, None])
        return Measurement(
            path=unit.path,
            formats=formats,
            errors=tuple(map(float, _ratio(errors.squared.sum(axis=0), energy))),
            worst_errors=tuple(map(float, slice_errors.max(axis=0))),
            energy=float(energy),
            slice_errors=slice_errors.astype("<f4").tobytes() if unit.slices > 1 else b"",
        )

    def to_dict(self) -> dict[str, Any]:
        return {"rounding": self.rounding}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], source: Source) -> Self:
        return cls(parse_rounding(fields["rounding"]).name, carried=source.carried)

    def encode(self, result: Measurement) -> Iterable[bytes]:
        """The record of the analysis file, which rounds nothing."""
        return (msgpack.packb(result.to_record()),)

    def decode(self, unit: Unit, data: memoryview) -> Measurement:
        return Measurement.from_record(msgpack.unpackb(data))

    def difference(self, one: Measurement, other: Measurement) -> Difference | None:
        return difference(one, other)


@dataclass(frozen=True, slots=True)
class Quantize(RoundingJob[Packed]):
    """The bytes of a unit in the format that `formats` has for its path; `checksums` are those of measured weights."""

    name: ClassVar[str] = "quantize"
    work: ClassVar[str] = WRITE
    formats: Mapping[str, Format]
    checksums: Mapping[str, str]
    rounding: str = DEFAULT_ROUNDING
    source: Source | None = None  # of units that may be copied as they are
    files: WeightFiles | None = None  # of the result, in this process

    def of_blocks(self, unit: Unit, blocks: Blocks) -> Packed:
        """The packed unit: as it is stored, or on the grid of its weights, where the format is that one.

        Otherwise, rounded to nearest, the bytes are those of `mx.quantize` on this device.

        Raises `MintError` for another weight than the measured one.
        """
        checked, packed = Checksummed(blocks), PackedParts(unit, self.formats[unit.path], self.files)
        if self.source and self.source.carried.get(unit.path) == packed.format:
            for slices, _ in checked():
                rows = slices if len(unit.shape) > 2 else ALL
                packed.fill(slices, [self.source.opened.stored.raw(tensor.name, rows) for tensor in packed.tensors])
        else:
            self._pack(unit, checked, packed)
        checked.check(unit, self.checksums)
        return packed.packed()

    def _pack(self, unit: Unit, blocks: Checksummed, packed: PackedParts) -> None:
        format = packed.format
        if format == KEEP:
            for slices, block in blocks():
                packed.fill(slices, (raw(block),))
            return

        def take(slices: slice, stored: OnGrid) -> None:
            if stored.format == format:
                packed.fill(slices, stored.parts)

        if format not in stored_on_grid(blocks, unit.formats, take):
            for slices, block in blocks():
                packed.fill(slices, backend().pack(block, format, ROUNDINGS[self.rounding]))

    def to_dict(self) -> dict[str, Any]:
        formats = {path: str(format) for path, format in self.formats.items()}
        return {"formats": formats, "checksums": dict(self.checksums), "rounding": self.rounding}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], source: Source) -> Self:
        formats = {path: parse_format(text) for path, text in fields["formats"].items()}
        return typed(cls(formats, fields["checksums"], parse_rounding(fields["rounding"]).name, source))

    def encode(self, result: Packed) -> Iterable[bytes | memoryview]:
        return result.data

    def decode(self, unit: Unit, data: memoryview) -> Packed:
        """The tensors lie one behind the other."""
        format = self.formats[unit.path]
        tensors = format.tensors(unit.path, unit.shape, unit.dtype)
        ends = list(accumulate((tensor.nbytes for tensor in tensors), initial=0))
        if len(data) != ends[-1]:
            raise MintError(f"{unit.path}: {len(data)} bytes came, needed the {ends[-1]} bytes of {format}")
        return Packed(unit.path, format, tensors, tuple(data[start:end] for start, end in pairwise(ends)))

    def result_nbytes(self, unit: Unit) -> int:
        return self.formats[unit.path].nbytes(unit.shape, unit.dtype)


def checksum_of(array: mx.array) -> str:
    """The XXH3 (64 bits) of an evaluated array's bytes in its own dtype, in hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(raw_bytes(array))


def check_analyzed(subject: str, checksum: str, needed: str) -> None:
    """Raise `MintError` unless the array that is the `subject` of the message has the `needed` checksum."""
    if checksum != needed:
        raise MintError(
            f"{subject} not the one that was measured (found checksum {checksum}, needed {needed}); "
            "put the analyzed model back, or analyze this one into a new file (--analysis)"
        )


def _ratio(squared: npt.NDArray[np.float64], energy: npt.NDArray[np.float64] | np.float64) -> npt.NDArray[np.float64]:
    """squared / energy; 0 for a weight of zeros, whatever its scale is."""
    return np.divide(squared, energy, out=np.zeros(squared.shape), where=energy > 0)
