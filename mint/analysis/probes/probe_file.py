"""Measured sensitivities: the record, and the file beside an analysis.

The finished file holds a header, one frame per probed unit in the order of the module tree, and an end frame with the
SHA-256 of everything before it. The same model, settings and kind of device give the same bytes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import fsum
from pathlib import Path
from typing import Any, Self

from mint.core.journal import SealedKind, read_sealed, write_sealed
from mint.core.records import reading, typed

MAGIC = b"MINT probe\n"
SCHEMA = 3
_KIND = SealedKind(MAGIC, SCHEMA, "a file of probes", "mint probe", "probe the model again")
FULL = "full"  # no base


@dataclass(frozen=True, slots=True)
class Probe:
    """The effect of coarse storage of one unit: KL divergence of the output, squared relative error of the weight."""

    path: str
    kls: tuple[float, ...]  # nats per token of each sequence
    error: float

    @property
    def kl(self) -> float:
        """Mean over all sequences, which have one length."""
        return fsum(self.kls) / len(self.kls)

    @property
    def alpha(self) -> float:
        """KL per squared relative error; 0 for a weight of zeros."""
        return max(self.kl, 0.0) / self.error if self.error else 0.0

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The probe of a frame."""
        probe = typed(cls(record["path"], tuple(record["kls"]), record["error"]))
        if not probe.kls:
            raise ValueError(f"{probe.path}: no divergences")
        return probe


@dataclass(frozen=True, slots=True)
class Probed:
    """All probes of one model, and their settings."""

    model: str  # identity of the source
    tokens: str  # the input of the model, in words
    base: str  # the storage of all other units: `full`, or the bits of a base
    probes: Mapping[str, Probe]

    @property
    def origin(self) -> str:
        """The origin of these sensitivities, in words."""
        return "probed" if self.base == FULL else f"probed around {self.base} bits"

    @property
    def alphas(self) -> dict[str, float]:
        """Sensitivities by path."""
        return {path: probe.alpha for path, probe in self.probes.items()}


def probe_path(analysis: Path) -> Path:
    """The file of the probes beside an analysis."""
    return analysis.with_name(analysis.name + ".probe")


def write_probed(path: Path, header: Mapping[str, Any], probes: Mapping[str, Probe]) -> Probed:
    """Write the finished file, whole or not at all, and return its probes."""
    ordered = [probes[name] for name in header["units"]]
    write_sealed(path, _KIND, header, [asdict(probe) for probe in ordered])
    return _probed(header, ordered)


def probes_beside(analysis: Path) -> Probed | None:
    """The probes beside an analysis, if there are any."""
    path = probe_path(analysis)
    return read_probes(path) if path.exists() else None


def read_probes(path: Path) -> Probed:
    """Read finished probes; `MintError` when the file is foreign, damaged or of another schema."""
    sealed = read_sealed(path, _KIND)
    with reading(f"{path}: a damaged file of probes", f"remove the file and {_KIND.remedy}"):
        return _probed(sealed.header, map(Probe.from_record, sealed.records))


def _probed(header: Mapping[str, Any], probes: Iterable[Probe]) -> Probed:
    return typed(Probed(header["model"], header["tokens"], header["base"], {probe.path: probe for probe in probes}))
