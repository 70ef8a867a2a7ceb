"""All measurements of one model: the record, and its file.

The finished file holds the header, one frame per unit in the order of the module tree, and an end frame with the
SHA-256 of all before it. Nothing in it depends on time or on the order of work, so the same weights measured by the
same versions on the same kind of device give the same bytes.
"""

import struct
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import cache
from math import inf, log10
from pathlib import Path
from typing import Any

from mint.analysis.features import Features
from mint.core.errors import MintError
from mint.core.journal import SealedKind, read_sealed, write_sealed
from mint.formats.format import KEEP, Format, parse_format
from mint.formats.units import Parameter, Unit, from_fields
from mint.model.kv_memory import ContextMemory

MAGIC = b"MINT analysis\n"
SCHEMA = 4
_KIND = SealedKind(MAGIC, SCHEMA, "a mint analysis", "mint analyze", "analyze the model again")


@dataclass(frozen=True, slots=True)
class Measurement:
    """The errors that each format would cause in one unit.

    `errors` are squared relative errors |Q(W) - W|^2 / |W|^2 (NRMSE^2) of the whole unit, one per format;
    `worst_errors` those of the worst matrix of a stack; `slice_errors` float32 (slices, formats), empty for a
    plain matrix. `energy` is |W|^2. `features` are None where they were not asked for or cannot be.
    """

    path: str
    formats: tuple[Format, ...]
    errors: tuple[float, ...]
    worst_errors: tuple[float, ...]
    energy: float
    nonfinite: int = 0
    slice_errors: bytes = b""
    features: Features | None = None

    def error(self, format: Format) -> float:
        """Squared relative error of the unit in this format; 0 when it is kept."""
        return 0.0 if format == KEEP else self.errors[self.formats.index(format)]


def sqnr_db(error: float) -> float:
    """Signal to quantization noise in dB of a squared relative error; infinite when there is none."""
    return -10 * log10(error) if error > 0 else inf


@dataclass(frozen=True, slots=True)
class Analysis:
    """All measurements of one model, with all that a plan needs to know of it."""

    model_type: str
    model: str  # identity of the source
    dtype: str
    source_nbytes: int
    rounding: str
    device: str
    versions: Mapping[str, str]
    units: tuple[Unit, ...]
    parameters: tuple[Parameter, ...]
    measurements: Mapping[str, Measurement]
    active: Mapping[str, float]  # share of a stack's matrices that one token is multiplied with, by path
    traced: ContextMemory | str  # or why it could not be traced
    features: Mapping[str, Any]  # what they were made with: numpy's version, the norm before each unit; empty for none
    digest: str

    @property
    def context(self) -> ContextMemory:
        """The memory that a context takes; `MintError` for a model whose forward pass could not be traced."""
        if isinstance(self.traced, str):
            raise MintError(f"{self.traced}. Give a --budget instead of a --device")
        return self.traced


def to_record(measurement: Measurement) -> dict[str, Any]:
    """The frame of one measurement: floats as little-endian float64, the worst errors only where they differ."""
    plain = measurement.worst_errors == measurement.errors
    return {
        "path": measurement.path,
        "formats": " ".join(map(str, measurement.formats)),
        "errors": _packed(measurement.errors),
        "worst_errors": b"" if plain else _packed(measurement.worst_errors),
        "energy": measurement.energy,
        "nonfinite": measurement.nonfinite,
        "slice_errors": measurement.slice_errors,
        "features": _packed(astuple(measurement.features)) if measurement.features else b"",
    }


def from_record(record: Mapping[str, Any]) -> Measurement:
    """The measurement of a frame."""
    errors = _unpacked(record["errors"])
    return Measurement(
        path=record["path"],
        formats=_formats(record["formats"]),
        errors=errors,
        worst_errors=_unpacked(record["worst_errors"]) if record["worst_errors"] else errors,
        energy=record["energy"],
        nonfinite=record["nonfinite"],
        slice_errors=record["slice_errors"],
        features=Features(*_unpacked(record["features"])) if record["features"] else None,
    )


def _packed(values: tuple[float, ...]) -> bytes:
    return struct.pack(f"<{len(values)}d", *values)


def _unpacked(text: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(text) // 8}d", text)


@cache
def _formats(names: str) -> tuple[Format, ...]:
    """One tuple for all units that were measured in the same formats."""
    return tuple(map(parse_format, names.split()))


def write_analysis(path: Path, header: dict[str, Any], measurements: Mapping[str, Measurement]) -> Analysis:
    """Write the finished file, whole or not at all, and return the analysis in it."""
    ordered = {unit[0]: measurements[unit[0]] for unit in header["units"]}
    digest = write_sealed(path, _KIND, header, [to_record(measurement) for measurement in ordered.values()])
    return _analysis(header, ordered, digest)


def read_analysis(path: Path | str) -> Analysis:
    """Read a finished analysis; `MintError` when the file is foreign, damaged, unfinished or of another schema."""
    path = Path(path)
    if not path.is_file():
        hint = " (an unfinished one is there: run mint analyze again)" if journal_path(path).exists() else ""
        raise MintError(f"{path}: no such analysis{hint}; make one with: mint analyze MODEL --output {path}")
    sealed = read_sealed(path, _KIND)
    return _analysis(sealed.header, {record["path"]: from_record(record) for record in sealed.records}, sealed.sha256)


def _analysis(header: Mapping[str, Any], measurements: Mapping[str, Measurement], digest: str) -> Analysis:
    context = header["context"]
    return Analysis(
        model_type=header["model_type"],
        model=header["model"],
        dtype=header["dtype"],
        source_nbytes=header["source_nbytes"],
        rounding=header["rounding"],
        device=header["device"],
        versions=header["versions"],
        units=tuple(from_fields(Unit, fields) for fields in header["units"]),
        parameters=tuple(from_fields(Parameter, fields) for fields in header["parameters"]),
        measurements=measurements,
        active=header["active"],
        traced=context if isinstance(context, str) else ContextMemory.from_fields(context),
        features=header["features"],
        digest=digest,
    )


def journal_path(path: Path) -> Path:
    """The journal of an unfinished analysis for `path`."""
    return path.with_name(path.name + ".partial")
