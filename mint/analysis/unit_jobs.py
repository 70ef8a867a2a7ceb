"""The two jobs that stream weights: measure a unit, and quantize a unit into a format.

They run wherever an executor puts them, on the backend of that device: it measures what it would write.
"""

# S slices (experts; 1 for a plain matrix), R rows, C columns, F formats

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from math import inf, log2, sqrt
from struct import Struct
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
from mint.formats.rounding import DEFAULT_ROUNDING, ROUNDINGS, Rounding, parse_rounding
from mint.formats.scheme import NVFP4_SCHEME
from mint.formats.units import Unit
from mint.kernels.backend import backend
from mint.kernels.exact import stored_on_grid
from mint.kernels.oracle import Errors, joined_slices, summed
from mint.kernels.ready import ready_kernels
from mint.kernels.storage import raw, raw_bytes
from mint.kernels.warmup import MEASURE, WRITE
from mint.model.checkpoint.reader import FLOATS, nonfinite_count
from mint.model.checkpoint.shards import SourceTensor
from mint.model.checkpoint.writer import WeightFiles
from mint.model.source import Source
from mint.run.job import BlockJob, Blocks, Difference, PortableJob, T, numbered, one_block
from mint.run.stacks import BLOCK, held_bytes, may_come_in_blocks

_LEAST, _LARGE, _MOST = 2.0**-50, 2.0**40, 2.0**115  # root mean squares of weights, see `errors_of`
_TOO_LARGE = 1e30  # a squared relative error that no rule admits

_PART = Struct("<QQ")  # of the first axis: before the packed bytes of each block that is sent


@dataclass(frozen=True, slots=True)
class Packed:
    """A unit as stored: the tensors of its format and their bytes, in the same order.

    `blocks` are the bytes of parts of the first axis, packed while they are sent; a part that comes again is the valid
    one.
    """

    path: str
    format: Format
    tensors: tuple[TensorSpec, ...]
    data: tuple[bytes | memoryview, ...]  # none where the weight files have them already
    sha256: str = ""  # of all the data, if known
    blocks: Iterable[tuple[slice, Sequence[Any]]] = ()  # in place of the data


def peak_bytes(source: Source, unit: Unit, tensors: Mapping[str, SourceTensor]) -> int:
    """Approximate peak memory of either job from `unit` on, the largest unit first; `tensors` are those of `source`.

    The tensors of the weight, the weight, a copy or its packed form; the next weight, which is no larger, read
    meanwhile; and the working memory of the backend. A weight in blocks is never whole.
    """
    if may_come_in_blocks(source, unit):
        return 2 * held_bytes(source, unit) + backend().working_bytes(BLOCK)
    stored = sum(tensors[name].nbytes for name in unit.sources)
    return 2 * (stored + unit.nbytes) + unit.nbytes + backend().working_bytes(unit.size)


class Checksummed:
    """Blocks of a weight, and the checksum of its bytes after a whole pass over them."""

    def __init__(self, unit: Unit, blocks: Blocks) -> None:
        self._unit, self._blocks = unit, blocks
        self.checksum = ""

    def __call__(self) -> Iterator[tuple[slice, mx.array]]:
        """Every block with its part of the first axis."""
        digest = xxhash.xxh3_64()
        for part, block in numbered(self._unit, self._blocks):
            digest.update(raw_bytes(block))
            yield part, block
        self.checksum = digest.hexdigest()

    def check(self, checksums: Mapping[str, str]) -> None:
        """Raise `MintError` unless the blocks are those of the weight that was measured."""
        path = self._unit.path
        check_analyzed(f"unit {path}: its weight is", self.checksum, checksums[path])


class PackedParts:
    """The tensors of a unit in a format, filled block by block; with `files`, blocks are written there at once."""

    def __init__(self, unit: Unit, format: Format, files: WeightFiles | None = None) -> None:
        self.unit, self.format, self._files = unit, format, files
        self.tensors = format.tensors(unit.path, unit.shape, unit.dtype)
        self._data: list[memoryview] = []

    def fill(self, part: slice, arrays: Sequence[Any]) -> None:
        """Take the bytes of a part of the first axis, in the order of `Format.tensors`."""
        pieces = [memoryview(array).cast("B") for array in arrays]
        if all(len(piece) == tensor.nbytes for piece, tensor in zip(pieces, self.tensors, strict=True)):
            self._data = pieces  # without a copy
            return
        starts = [part.start * tensor.nbytes // self.unit.shape[0] for tensor in self.tensors]
        if self._files:
            for tensor, piece, start in zip(self.tensors, pieces, starts, strict=True):
                self._files.write_piece(tensor, piece, start)
            return
        self._data = self._data or [memoryview(bytearray(tensor.nbytes)) for tensor in self.tensors]
        for data, piece, start in zip(self._data, pieces, starts, strict=True):
            data[start : start + len(piece)] = piece

    def packed(self) -> Packed:
        """The whole unit."""
        return Packed(self.unit.path, self.format, self.tensors, tuple(self._data))


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

    def takes_rows(self, unit: Unit) -> bool:
        return True

    def of_blocks(self, unit: Unit, blocks: Blocks) -> Measurement:
        """The errors for `rounding`, or for the one measured in its place.

        NaN and infinite weights are counted in `nonfinite`; the errors then mean nothing.
        """
        checked = Checksummed(unit, blocks)
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
        joined = joined_slices if len(unit.shape) > 2 else summed
        errors = joined([errors_of(block, formats, measured) for _, block in blocks()])
        if errors.nonfinite:
            zeros = (0.0,) * len(formats)
            return Measurement(unit.path, formats, zeros, zeros, 0.0, int(errors.nonfinite))
        errors.squared[:] *= np.array([rounding.shares.get(str(format), 1.0) for format in formats])
        on_grid: dict[Format, dict[int, npt.NDArray[np.float64]]] = defaultdict(dict)  # by the start of the block
        for stored in stored_on_grid(blocks, formats):
            if isinstance(stored, Format):
                squares = list(on_grid[stored].values())
                errors.squared[:, formats.index(stored)] = (
                    np.concatenate(squares) if len(unit.shape) > 2 else sum(squares)
                )
            else:
                on_grid[stored[1].format][stored[0].start] = stored[1].squared
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
    sends: bool = False  # results go to another process: blocks are packed while they are sent

    def takes_rows(self, unit: Unit) -> bool:
        return True

    def __call__(self, unit: Unit, weight: mx.array) -> Packed:
        return self._packed(unit, one_block(unit, weight))

    def of_blocks(self, unit: Unit, blocks: Blocks) -> Packed:
        """The packed unit: as it is stored, or on the grid of its weights, where the format is that one.

        Otherwise, rounded to nearest, the bytes are those of `mx.quantize` on this device.

        Raises `MintError` for another weight than the measured one; to send it, only while its blocks are taken.
        """
        if not self.sends:
            return self._packed(unit, blocks)
        format = self.formats[unit.path]
        tensors = format.tensors(unit.path, unit.shape, unit.dtype)
        return Packed(unit.path, format, tensors, (), blocks=self._parts(unit, blocks, tensors))

    def _packed(self, unit: Unit, blocks: Blocks) -> Packed:
        packed = PackedParts(unit, self.formats[unit.path], self.files)
        for part, arrays in self._parts(unit, blocks, packed.tensors):
            packed.fill(part, arrays)
        return packed.packed()

    def _parts(
        self, unit: Unit, blocks: Blocks, tensors: Sequence[TensorSpec]
    ) -> Iterator[tuple[slice, Sequence[npt.NDArray[Any]]]]:
        """Parts of the first axis and their tensors; the last that come of a part are valid."""
        checked, format = Checksummed(unit, blocks), self.formats[unit.path]
        if self.source and self.source.carried.get(unit.path) == format:
            for part, _ in checked():
                yield part, [self.source.opened.stored.raw(tensor.name, part) for tensor in tensors]
        else:
            yield from self._rounded(unit, checked, format)
        checked.check(self.checksums)

    def _rounded(
        self, unit: Unit, blocks: Checksummed, format: Format
    ) -> Iterator[tuple[slice, Sequence[npt.NDArray[Any]]]]:
        if format == KEEP:
            for part, block in blocks():
                yield part, (raw(block),)
            return
        for stored in stored_on_grid(blocks, unit.formats):
            if stored == format:
                return
            if not isinstance(stored, Format) and stored[1].format == format:
                yield stored[0], stored[1].parts
        for part, block in blocks():
            yield part, backend().pack(block, format, ROUNDINGS[self.rounding])

    def to_dict(self) -> dict[str, Any]:
        formats = {path: str(format) for path, format in self.formats.items()}
        return {"formats": formats, "checksums": dict(self.checksums), "rounding": self.rounding}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], source: Source) -> Self:
        formats = {path: parse_format(text) for path, text in fields["formats"].items()}
        return typed(cls(formats, fields["checksums"], parse_rounding(fields["rounding"]).name, source, sends=True))

    def encode(self, result: Packed) -> Iterable[bytes | memoryview]:
        """For each block its part of the first axis, then its tensors one behind the other."""
        whole = slice(0, result.tensors[0].shape[0]), result.data
        for part, arrays in result.blocks or (whole,):
            yield _PART.pack(part.start, part.stop)
            yield from (memoryview(array).cast("B") for array in arrays)

    def decode(self, unit: Unit, data: memoryview) -> Packed:
        """The unit; its blocks are written to the `files`, if it comes in several."""
        packed, count, stop = PackedParts(unit, self.formats[unit.path], self.files), unit.shape[0], 0
        while data:
            start, end = _PART.unpack_from(data)
            needed = [tensor.nbytes * (end - start) // count for tensor in packed.tensors]
            ends = list(accumulate(needed, initial=_PART.size))
            if start not in (0, stop) or not start < end <= count or len(data) < ends[-1]:
                raise MintError(f"{unit.path}: {len(data)} bytes came for {start}:{end} of {count}, needed {ends[-1]}")
            packed.fill(slice(start, end), [data[first:last] for first, last in pairwise(ends)])
            data, stop = data[ends[-1] :], end
        if stop != count:
            raise MintError(f"{unit.path}: {stop} of {count} came")
        return packed.packed()

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
    """squared / energy, at most `_TOO_LARGE`; 0 for a weight of zeros, whatever its scale is."""
    ratio = np.divide(squared, energy, out=np.zeros(squared.shape), where=energy > 0)
    return np.nan_to_num(ratio, nan=_TOO_LARGE, posinf=_TOO_LARGE).clip(max=_TOO_LARGE)


def errors_of(block: mx.array, formats: Sequence[Format], rounding: Rounding) -> Errors:
    """The errors of a block. Large weights are measured times a power of two, as backends square in float32.

    No format is admitted below `_LEAST`, where squares vanish, and beyond `_MOST`, where scales can overflow.
    """
    errors = backend().errors(block, formats, rounding)
    size = sqrt(errors.energy.sum() / block.size)
    if errors.nonfinite or size == 0 or _LEAST < size < _LARGE:
        return errors
    if not _LEAST < size < _MOST:
        return replace(errors, squared=np.full(errors.squared.shape, inf))
    power = round(log2(size))
    scaled = backend().errors(block * mx.array(2.0**-power, block.dtype), formats, rounding)
    scaled.squared[:, [format.scheme == NVFP4_SCHEME for format in formats]] = inf  # its scales have few exponents
    return replace(scaled, squared=scaled.squared * 4.0**power, energy=scaled.energy * 4.0**power)
