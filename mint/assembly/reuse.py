"""Units that another folder already holds: same model, format, rounding, device kind and versions, same bytes.

A folder of another budget of the model mostly differs in few units. The others are taken from it byte for byte; each
is checked against the SHA-256 in that folder's manifest, and quantized anew where it does not hold.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mint.analysis.unit_jobs import Packed
from mint.core.errors import MintError
from mint.core.files import sha256_of
from mint.core.log import log
from mint.formats.format import Format
from mint.formats.rounding import ROUNDINGS
from mint.formats.units import Unit
from mint.model.checkpoint.manifest import PLAN_NAME, read_manifest
from mint.model.checkpoint.reader import StoredModel, open_stored
from mint.plan.plan import Plan, read_plan
from mint.run.device_kind import device_kind, versions


@dataclass(frozen=True, slots=True)
class _StoredUnit:
    """A unit in a finished folder."""

    model: StoredModel
    format: Format
    sha256: str


class Reuse:
    """Finished folders to take units from, and how much was taken so far.

    Raises `MintError` for a folder that mint did not write. A folder of another model, rounding, device kind or version
    is logged and not used.
    """

    def __init__(self, folders: Sequence[Path | str] = ()) -> None:
        self.folders = [Path(folder) for folder in folders]
        for folder in self.folders:
            read_manifest(folder)
        self.units = 0
        self.nbytes = 0

    def take(self, plan: Plan, units: Sequence[Unit]) -> Iterator[tuple[Unit, Packed]]:
        """Those of `units` that a folder holds in the format that `plan` gives them."""
        units_by_path = self._stored_units(plan)
        formats = {choice.path: choice.format for choice in plan.choices}
        for unit in units:
            for stored in units_by_path.get(unit.path, ()):
                if stored.format == formats[unit.path] and (packed := _read(unit, stored)):
                    self.units += 1
                    self.nbytes += sum(map(len, packed.data))
                    yield unit, packed
                    break

    def _stored_units(self, plan: Plan) -> dict[str, list[_StoredUnit]]:
        units: dict[str, list[_StoredUnit]] = {}
        for folder in self.folders:
            if not ROUNDINGS[plan.rounding].is_reusable:
                log.info("folder.not_reused", folder=str(folder), reason="a compensated unit depends on all before it")
                continue
            manifest, other = read_manifest(folder), read_plan(folder / PLAN_NAME)
            ours = (plan.model, plan.dtype, plan.rounding, device_kind(), versions())
            theirs = (other.model, other.dtype, other.rounding, manifest.device, dict(manifest.versions))
            if theirs != ours:
                reason = "another model, dtype, rounding, device or version"
                log.warning("folder.not_reused", folder=str(folder), reason=reason)
                continue
            stored = open_stored(folder)
            for choice in other.choices:
                units.setdefault(choice.path, []).append(
                    _StoredUnit(stored, choice.format, manifest.units[choice.path])
                )
        return units


def _read(unit: Unit, stored: _StoredUnit) -> Packed | None:
    """The unit's bytes in the folder; None, with a log event, when they are not those of the manifest."""
    tensors = stored.format.tensors(unit.path, unit.shape, unit.dtype)
    try:
        data = tuple(stored.model.raw(tensor.name).reshape(-1).view("u1").data for tensor in tensors)
    except (KeyError, OSError, MintError):
        data = ()
    if not data or sha256_of(data) != stored.sha256:
        log.warning("unit.not_reused", unit=unit.path, folder=str(stored.model.folder), reason="its bytes changed")
        return None
    return Packed(unit.path, stored.format, tensors, data, stored.sha256)
