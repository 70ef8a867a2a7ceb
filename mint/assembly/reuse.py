"""Copies units from other folders: the same model, format, rounding, device kind and versions give the same bytes.

A folder of another budget of the model mostly differs in few units. The others are copied byte for byte. Each copy is
checked against the SHA-256 in that folder's manifest; a unit that differs is quantized again.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mint.analysis.unit_jobs import Packed
from mint.core.errors import MintError
from mint.core.files import sha256_of
from mint.core.log import log
from mint.formats.format import Format, TensorSpec
from mint.formats.rounding import ROUNDINGS
from mint.formats.units import Unit, parts_of
from mint.model.checkpoint.manifest import PLAN_NAME, read_manifest
from mint.model.checkpoint.reader import StoredModel, open_stored
from mint.model.checkpoint.writer import WeightFiles
from mint.plan.plan import Plan, read_plan
from mint.run.device_kind import device_kind, versions

_PIECE = 4 << 20  # values copied at once


class Reuse:
    """Finished folders to copy units from, and the number and bytes of the copies so far.

    Raises `MintError` for a folder that mint did not write. A folder of another model, rounding, device kind or version
    is logged and not used.
    """

    def __init__(self, folders: Sequence[Path | str] = ()) -> None:
        self.folders = [Path(folder) for folder in folders]
        for folder in self.folders:
            read_manifest(folder)
        self.units = self.nbytes = 0

    def take(self, plan: Plan, units: Sequence[Unit], files: WeightFiles) -> Iterator[tuple[Unit, Packed]]:
        """Yield those of `units` that a folder holds in the format of `plan`, once `files` have them."""
        stored = list(self._usable(plan))
        wanted = {choice.path: (choice.path, choice.format, choice.checksum) for choice in plan.choices}
        for unit in units:
            for model, digests in stored:
                digest = digests.get(wanted[unit.path])
                if digest and (packed := _copied(unit, wanted[unit.path][1], model, digest, files)):
                    self.units += 1
                    self.nbytes += sum(tensor.nbytes for tensor in packed.tensors)
                    yield unit, packed
                    break

    def _usable(self, plan: Plan) -> Iterator[tuple[StoredModel, dict[tuple[str, Format, str], str]]]:
        """The folders that fit `plan`, with the SHA-256 of their units by path, format and checksum of the weight."""
        for folder in self.folders:
            if ROUNDINGS[plan.rounding].sequential:
                log.info("folder.not_reused", folder=str(folder), reason="a compensated unit depends on all before it")
                continue
            try:
                manifest, other = read_manifest(folder), read_plan(folder / PLAN_NAME)
            except MintError as error:  # of another version
                log.warning("folder.not_reused", folder=str(folder), reason=str(error))
                continue
            ours = (_origin(plan), device_kind(), versions(manifest.versions))
            theirs = (_origin(other), manifest.device, dict(manifest.versions))
            if theirs != ours:
                reason = "another model, dtype, loader, rounding, device or version"
                log.warning("folder.not_reused", folder=str(folder), reason=reason)
                continue
            digests = {(c.path, c.format, c.checksum): manifest.units[c.path] for c in other.choices}
            yield open_stored(folder), digests


def _origin(plan: Plan) -> tuple[str, ...]:
    return plan.model, plan.dtype, plan.loader, plan.rounding


def _copied(unit: Unit, format: Format, model: StoredModel, sha256: str, files: WeightFiles) -> Packed | None:
    """The unit, copied from a folder in pieces; None, with a log event, if its bytes have another digest."""
    tensors = format.tensors(unit.path, unit.shape, unit.dtype)
    stored = {TensorSpec(tensor.name, tensor.dtype, tensor.shape) for tensor in model.tensors.values()}
    try:
        is_same = stored.issuperset(tensors) and sha256_of(_pieces(tensors, model, files)) == sha256
    except (OSError, MintError):
        is_same = False
    if not is_same:
        log.warning("unit.not_reused", unit=unit.path, folder=str(model.folder), reason="its bytes changed")
        return None
    return Packed(unit.path, format, tensors, (), sha256)


def _pieces(tensors: Iterable[TensorSpec], model: StoredModel, files: WeightFiles) -> Iterator[memoryview]:
    """The bytes of some tensors, each piece once it is written to `files`."""
    for tensor in tensors:
        start = 0
        for rows in parts_of(tensor.shape, _PIECE):
            piece = model.raw(tensor.name, rows).reshape(-1).view("u1").data
            files.write_piece(tensor, piece, start)
            start += len(piece)
            yield piece
