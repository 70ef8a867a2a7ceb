"""The worker of a node: describes what the node holds, opens the model, and does batches of units.

Nothing here knows how calls and results travel. One thread makes all calls that touch MLX arrays, since those belong to
the thread that makes them; others answer meanwhile (`actor.py`).
"""

import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cluster.copies.inventory import Holder, Inventory, find_model, model_roots, take_inventory
from cluster.copies.lending import Borrower, Lender, Loans, Peers, Piece, RefusedError
from cluster.transport.messages import (
    Parcel,
    config_of,
    make_job,
    outlines_of,
    pack,
    source_from,
    to_pieces,
    unpack,
)
from cluster.transport.prefetch import BatchWeights, Part, ReadAhead
from cluster.transport.throughput import metered
from mint.analysis.unit_jobs import peak_bytes
from mint.core.errors import MintError, typed
from mint.core.memory import memory_is_short
from mint.core.sizes import enough_size, format_size
from mint.formats.units import Unit
from mint.model.checkpoint.shards import SourceTensor
from mint.model.checkpoint.sparse_copy import Outline, Range, make_view, read_outline, read_ranges, view_folder
from mint.model.source import PACKAGES, Source
from mint.run.device_kind import device_kind, versions
from mint.run.executor import do, in_process, memory_for_models
from mint.run.job import PortableJob
from mint.run.stacks import in_blocks

AHEAD_BYTES = 1 << 30  # of a batch that comes next; or its first unit, if that is larger


class Worker:
    """Opens a model on one node and does jobs with its units, each in at most `memory_bytes` (default: this machine's).

    Jobs have growing numbers: a message about an earlier job is out of date.
    """

    def __init__(self, node: str, memory_bytes: int | None = None) -> None:
        self.node = node
        self.memory_bytes = memory_for_models() if memory_bytes is None else memory_bytes
        self._folder: Path | None = None
        self._opened: tuple[bytes, Path | None] | None = None  # the record of the model, and its folder
        self.source: Source  # with the next three from the first `open` on
        self.weights: BatchWeights
        self.units: dict[str, Unit]
        self.tensors: dict[str, SourceTensor]
        self.number = 0  # of the job
        self.job: PortableJob[Any] | None = None
        self._skipped: set[tuple[int, int, str]] = set()  # job, batch, unit
        self._ahead = ReadAhead()
        self._begun: Unit | None = None
        self._lender: Lender | None = None
        self._parcel: Parcel[list[Any]] = Parcel()
        self._lacking: dict[str, Outline] = {}
        self._loans: Loans | None = None

    def hello(self, model: str, *, share: bool = False) -> bytes:
        """Describe this node as a `Holder`; to `share` it lends the shards of `model` that it may lend."""
        self._folder = None
        try:
            self._folder = find_model(model, model_roots())
            inventory = take_inventory(self.node, self._folder)
        except MintError as error:
            inventory = Inventory(self.node, "", faults=(str(error),))
        self._lender = Lender(inventory) if share else None
        lent, unlent = (tuple(self._lender.lent), self._lender.unlent) if self._lender else ((), {})
        all_versions = {**versions(PACKAGES), "python": platform.python_version(), "ray": version("ray")}
        return pack(Holder(inventory, device_kind(), self.memory_bytes, os.getpid(), all_versions, lent, unlent))

    def outline(self, shard: str) -> bytes:
        """Size and header of a shard that this node holds."""
        return pack(read_outline(self._path(shard)))

    def ranges(self, shard: str, ranges: Sequence[Range]) -> bytes:
        """These ranges of a shard that this node holds."""
        return pack(read_ranges(self._path(shard), ranges))

    def piece(self, shard: str, start: int, nbytes: int) -> Piece:
        """A range of a shard that this node lends; called by any thread."""
        if self._lender is None:
            raise RefusedError("lends nothing")
        return self._lender.piece(shard, start, nbytes)

    def open(self, number: int, model: bytes, job: bytes, peers: Peers) -> None:
        """Get ready to do `job` with units of `model`, and to borrow from `peers` what is not here.

        A model that is open stays open. An earlier job than the present one is not begun.
        """
        if number < self.number:
            return
        self.number = number
        if self._opened != (model, self._folder):
            self._open_model(unpack(model))
            self._opened = model, self._folder
        self.job = make_job(unpack(job), self.source, self.job)
        self._skipped.clear()
        self._parcel = Parcel()
        self._loans = None
        if self._lender and self._lacking:
            self._loans = Loans(self.source.folder, self._lacking, self.tensors, Borrower(peers))

    def _open_model(self, record: dict[str, Any]) -> None:
        folder, (identity, config) = self._folder, config_of(record)
        present = {path.name for path in folder.iterdir()} if folder else set()
        self._lacking = {name: outline for name, outline in outlines_of(record).items() if name not in present}
        has_config = "config.json" in present and folder and (folder / "config.json").read_bytes() == config
        if self._lacking or folder is None or not has_config:
            folder = make_view(view_folder(identity, folder), folder, config, self._lacking)
        self.source = source_from(record, folder, self._lacking)
        self.units = {unit.path: unit for unit in self.source.units}
        self.tensors = self.source.tensors()
        self.weights = BatchWeights(self.source, self.source.units)

    def run(self, number: int, batch: int, names: Sequence[str]) -> Iterator[bytes]:
        """Do these units in their order; messages of entries `[unit, reason of failure, piece, is the last piece]`."""
        if number != self.number:
            return
        assert self.job
        self._ahead.stop(batch)
        if self._begun and self._begun.path not in names:
            self.weights.forget_kin([self._begun])
        self._begun = None
        parcel, skipped = self._parcel, self._skipped
        units = rest = [self.units[name] for name in names]
        for unit in units:
            if reason := self._too_large(unit):
                yield pack([[unit.path, reason, b"", True]])
                rest = [other for other in rest if other is not unit]
        while rest := [unit for unit in rest if (number, batch, unit.path) not in skipped]:
            try:
                for unit, piece, is_last in metered(self.job.label, self._pieces(rest)):
                    if parcel.add([unit.path, "", piece, is_last], len(piece)):
                        yield pack(parcel.take())
                    if not is_last:
                        continue
                    rest = rest[1:]
                    again = any((number, batch, unit.path) in skipped for unit in rest)
                    if parcel.is_due(unit.nbytes, rest[0].nbytes if rest and not again else None):
                        yield pack(parcel.take())
                    if again:
                        break
            except Exception as error:  # of any kind: it counts against the unit, and a second worker tries
                self.weights.forget()  # those that are read ahead may hold bytes of a failed read
                self._begun = None
                parcel.add([rest[0].path, f"{type(error).__name__}: {typed(error)}", b"", True], 0)
                yield pack(parcel.take())
                rest = rest[1:]
        self._ahead.stop(batch)
        self.weights.forget_kin(units, keep=self._begun.path if self._begun else "")
        if self._loans:
            self._loans.give_back()

    def _pieces(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, bytes, bool]]:
        """The pieces of every result, packed while they are taken where the weight comes in blocks."""
        assert self.job
        for unit, result in self.results(units):
            for piece, is_last in to_pieces(self.job, result):
                yield unit, piece, is_last
            del result

    def results(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, Any]]:
        assert self.job
        if self._loans:  # its files are filled for one batch, so they are opened for one
            return self._loans.before(units, in_process(self.source, self.job, units))
        return do(self.job, units, self.weights, on_last=self._read_ahead)

    def expect(self, number: int, batch: int, names: Sequence[str]) -> None:
        """Announce a batch: its first units are read ahead as soon as the disk is idle."""
        if number == self.number and not self._loans:
            self._ahead.want(batch, tuple(self._parts(names)), names[0])

    def borrow_from(self, peers: Peers) -> None:
        """Borrow from these peers from now on."""
        if self._loans:
            self._loans.borrower.peers = peers

    def skip(self, number: int, batch: int, names: Sequence[str]) -> None:
        """Do not begin these units of a batch."""
        self._skipped.update((number, batch, name) for name in names)

    def ping(self) -> bool:
        """Answer."""
        return True

    def _read_ahead(self) -> None:
        """Begin the next batch after the last weight of a batch, or let it be read when it is announced.

        The estimate of a unit's peak has room for the next, which is no larger: the largest come first.
        """
        name = self._ahead.next
        assert self.job
        if name and not memory_is_short():
            unit = self.units[name]
            if not in_blocks(self.job, self.source, unit):
                self._begun = unit
                self.weights.begin(unit)
        elif not name:
            self._ahead.free()

    def _too_large(self, unit: Unit) -> str:
        """The reason why this machine refuses a unit, rather than be killed for it; empty when it has room."""
        assert self.job
        needed = peak_bytes(self.source, unit, self.tensors) + self.job.working_bytes(unit)
        if needed <= self.memory_bytes:
            return ""
        return f"it takes about {enough_size(needed)} of memory, there are {format_size(self.memory_bytes)}"

    def _parts(self, names: Sequence[str]) -> Iterator[Part]:
        """The file ranges of the first of these units, and of as many others as make `AHEAD_BYTES`."""
        nbytes = 0
        for unit in (self.units[name] for name in names):
            nbytes += unit.nbytes
            if nbytes > max(AHEAD_BYTES, unit.nbytes):
                return
            for tensor in (self.tensors[name] for name in unit.sources):
                yield self.source.folder / tensor.shard, tensor.offset, tensor.nbytes

    def _path(self, shard: str) -> Path:
        assert self._folder
        return self._folder / shard
