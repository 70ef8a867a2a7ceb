"""All measurements of one model: the record, and its file.

The finished file holds the header, one frame per unit in the order of the module tree, and an end frame with the
SHA-256 of everything before it. Nothing in it depends on time or on the order of work, so the same weights, versions
and kind of device give the same bytes.
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from functools import cache
from math import inf, log10
from pathlib import Path
from typing import Any, Self

from mint.analysis.features.features import Features
from mint.core.errors import MintError
from mint.core.files import partial_path
from mint.core.journal import SealedKind, read_sealed, write_sealed
from mint.core.records import reading, typed
from mint.formats.format import KEEP, Format, parse_format
from mint.formats.rounding import parse_rounding
from mint.formats.units import Parameter, Unit, from_fields
from mint.model.kv_memory import ContextMemory
from mint.model.opening.path_kind import refuse_kind

MAGIC = b"MINT analysis\n"
SCHEMA = 8
_KIND = SealedKind(MAGIC, SCHEMA, "a mint analysis", "mint analyze", "analyze the model again")


@dataclass(frozen=True, slots=True)
class Measurement:
    """The errors that each format would cause in one unit.

    `errors` are squared relative errors |Q(W) - W|^2 / |W|^2 (NRMSE^2) of the whole unit, one per format;
    `worst_errors` those of the worst matrix of a stack; `slice_errors` float32 (slices, formats), empty for a
    plain matrix. `energy` is |W|^2. `checksum` is that of the weight's bytes (`checksum_of`): only these bytes have
    these errors. `features` are None unless they were measured.
    """

    path: str
    formats: tuple[Format, ...]
    errors: tuple[float, ...]
    worst_errors: tuple[float, ...]
    energy: float
    nonfinite: int = 0
    checksum: str = ""
    slice_errors: bytes = b""
    features: Features | None = None

    def error(self, format: Format) -> float:
        """Squared relative error of the unit in this format; 0 if kept."""
        return 0.0 if format == KEEP else self.errors[self.formats.index(format)]

    def to_record(self) -> dict[str, Any]:
        """The frame in a file: floats as little-endian float64, the worst errors only where they differ."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "formats": " ".join(map(str, self.formats)),
            "errors": _packed(self.errors),
            "worst_errors": b"" if self.worst_errors == self.errors else _packed(self.worst_errors),
            "features": _packed(astuple(self.features)) if self.features else b"",
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The measurement of a frame."""
        errors, features = _unpacked(record["errors"]), _unpacked(record["features"])
        values = {
            "formats": _formats(record["formats"]),
            "errors": errors,
            "worst_errors": _unpacked(record["worst_errors"]) or errors,
            "features": Features(*features) if features else None,
        }
        measurement = typed(cls(**{**record, **values}))
        if {len(errors), len(measurement.worst_errors)} != {len(measurement.formats)}:
            raise ValueError(f"{measurement.path}: {len(errors)} errors for {len(measurement.formats)} formats")
        return measurement


def sqnr_db(error: float) -> float:
    """Signal to quantization noise in dB of a squared relative error; infinite for 0."""
    return -10 * log10(error) if error > 0 else inf


@dataclass(frozen=True, slots=True)
class Analysis:
    """All measurements of one model, and all facts about the model that a plan needs."""

    model_type: str
    model: str  # identity of the source
    dtype: str
    loader: str  # the package whose classes hold the model
    source_nbytes: int
    rounding: str
    device: str
    versions: Mapping[str, str]
    units: tuple[Unit, ...]
    parameters: tuple[Parameter, ...]
    parameter_checksums: Mapping[str, str]  # by name
    dropped_towers: tuple[str, ...]  # vision or audio, which the loader's classes drop
    measurements: Mapping[str, Measurement]
    active: Mapping[str, float]  # share of a stack's matrices that one token uses, by path
    traced: ContextMemory | str  # a str is the reason for no trace
    features: Mapping[str, Any]  # numpy's version and the norm before each unit; empty without features
    digest: str

    def __repr__(self) -> str:
        return f"<Analysis of {len(self.units)} units, {self.model_type}, rounding {self.rounding}>"

    @property
    def context(self) -> ContextMemory:
        """The memory of a context; `MintError` for a model whose forward pass cannot be traced."""
        if isinstance(self.traced, str):
            raise MintError(f"{self.traced}. Give a --budget instead of a --device")
        return self.traced


def _packed(values: tuple[float, ...]) -> bytes:
    return struct.pack(f"<{len(values)}d", *values)


def _unpacked(text: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(text) // 8}d", text)


@cache
def _formats(names: str) -> tuple[Format, ...]:
    """One tuple for all units with the same formats."""
    return tuple(map(parse_format, names.split()))


def write_analysis(path: Path, header: dict[str, Any], measurements: Mapping[str, Measurement]) -> Analysis:
    """Write the finished file, whole or not at all, and return its analysis."""
    ordered = {unit[0]: measurements[unit[0]] for unit in header["units"]}
    digest = write_sealed(path, _KIND, header, [measurement.to_record() for measurement in ordered.values()])
    return _analysis(header, ordered, digest)


def read_analysis(path: Path | str) -> Analysis:
    """Read a finished analysis; `MintError` when the file is foreign, damaged, unfinished or of another schema."""
    path = Path(path)
    refuse_kind(path, "a file that `mint analyze` wrote", "an analysis")
    if not path.is_file():
        hint = " (an unfinished one is there: run mint analyze again)" if partial_path(path).exists() else ""
        raise MintError(f"{path}: no such analysis{hint}; make one with: mint analyze MODEL --output {path}")
    sealed = read_sealed(path, _KIND)
    with reading(f"{path}: a damaged analysis", f"remove the file and {_KIND.remedy}"):
        return _analysis(sealed.header, measurements_of(sealed.records), sealed.sha256)


def measurements_of(records: Iterable[Mapping[str, Any]]) -> dict[str, Measurement]:
    """The measurements of frames by path."""
    return {measurement.path: measurement for measurement in map(Measurement.from_record, records)}


def _analysis(header: Mapping[str, Any], measurements: Mapping[str, Measurement], digest: str) -> Analysis:
    context = header["context"]
    parse_rounding(header["rounding"])
    values = {name: value for name, value in header.items() if name not in ("schema", "context")} | {
        "units": tuple(from_fields(Unit, fields) for fields in header["units"]),
        "parameters": tuple(from_fields(Parameter, fields) for fields in header["parameters"]),
        "dropped_towers": tuple(header["dropped_towers"]),
        "traced": context if isinstance(context, str) else ContextMemory.from_fields(context),
    }
    analysis = typed(Analysis(**values, measurements=measurements, digest=digest))
    if {unit.path for unit in analysis.units} != measurements.keys():
        raise ValueError("its measurements are not those of its units")
    if {parameter.name for parameter in analysis.parameters} != analysis.parameter_checksums.keys():
        raise ValueError("its checksums are not those of its parameters")
    return analysis
