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

import mlx.core as mx

from cluster.copies.borrower import Borrower, Loans, Peers
from cluster.copies.inventory import find_model, model_roots, take_inventory
from cluster.copies.lender import Lender, Piece, RefusedError
from cluster.copies.sparse_copy import Outline, Range, make_view, read_outline, read_ranges
from cluster.transport.messages import Parcel
from cluster.transport.prefetch import BatchWeights, Part, ReadAhead
from cluster.transport.throughput import metered
from cluster.transport.wire import (
    make_folder_name,
    make_job,
    outlines_of,
    pack,
    source_from,
    tell_inventory,
    to_pieces,
    unpack,
)
from mint.analysis.probes.packed_base import memory_for_models
from mint.analysis.unit_jobs import peak_bytes
from mint.core.cache import cache_folder
from mint.core.memory import memory_is_short
from mint.core.sizes import format_size
from mint.formats.units import Unit
from mint.model.checkpoint.shards import SourceTensor
from mint.model.source import Source
from mint.run.device_kind import device_kind, versions
from mint.run.executor import do, in_process
from mint.run.job import PortableJob

AHEAD_BYTES = 1 << 30  # of a batch that comes next; or its first unit, if that is larger


class Worker:
    """Opens a model on one node and does jobs with its units."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._folder: Path | None = None
        self._opened: tuple[bytes, Path | None] | None = None  # the model as it was told, and where it lies
        self._source: Source | None = None
        self._weights: BatchWeights | None = None
        self._tensors: dict[str, SourceTensor] = {}
        self._units: dict[str, Unit] = {}
        self._number = 0  # of the job: what is said of an earlier one is out of date
        self._job: PortableJob[Any] | None = None
        self._skipped: set[tuple[int, int, str]] = set()
        self._ahead = ReadAhead()
        self._begun: Unit | None = None
        self._memory = memory_for_models()
        self._lender: Lender | None = None
        self._parcel: Parcel[list[Any]] = Parcel()
        self._lacking: dict[str, Outline] = {}
        self._borrower: Borrower | None = None
        self._loans: Loans | None = None

    def hello(self, model: str, *, share: bool = False) -> bytes:
        """Describe this node: its device and versions, its inventory of `model`, and what it lends to `share`."""
        self._folder = find_model(model, model_roots())
        inventory = take_inventory(self._node, self._folder)
        self._lender = Lender(inventory) if share else None
        return pack(
            {
                "pid": os.getpid(),
                "device": device_kind(),
                "memory_bytes": self._memory,
                "versions": {**versions(), "python": platform.python_version(), "ray": version("ray")},
                "inventory": tell_inventory(inventory),
                "lent": list(self._lender.lent) if self._lender else [],
                "kept": self._lender.kept if self._lender else {},
            }
        )

    def outline(self, shard: str) -> bytes:
        """Size and header of a shard that this node holds."""
        outline = read_outline(self._path(shard))
        return pack([outline.nbytes, outline.header])

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

        What is the same as before is kept. Jobs have growing numbers; one that is over by now is not begun.
        """
        if number < self._number:
            return
        self._number = number
        if self._opened != (model, self._folder):
            self._open_model(unpack(model))
            self._opened = model, self._folder
        assert self._source
        self._job = make_job(unpack(job), self._source, self._job)
        self._skipped.clear()
        self._parcel = Parcel()
        self._borrower = self._loans = None
        if self._lender and self._lacking:
            self._borrower = Borrower(peers)
            self._loans = Loans(self._source.folder, self._lacking, self._tensors, self._borrower)

    def _open_model(self, told: dict[str, Any]) -> None:
        outlines = outlines_of(told)
        held = {path.name for path in self._folder.iterdir()} if self._folder else set()
        lacking = {name: outline for name, outline in outlines.items() if name not in held}
        folder = self._folder
        if lacking or folder is None or not _has(folder / "config.json", told["config_text"]):
            view = views() / make_folder_name(told["identity"], folder)
            folder = make_view(view, folder, told["config_text"], lacking)
        self._source = source_from(told, folder)
        self._units = {unit.path: unit for unit in self._source.units}
        self._tensors = self._source.tensors()
        self._weights = BatchWeights(self._source, self._source.units)
        self._lacking = lacking

    def run(self, number: int, batch: int, names: Sequence[str]) -> Iterator[bytes]:
        """Do these units in their order; messages of entries `[unit, reason of failure, piece, whether the last]`."""
        if number != self._number:
            return
        assert self._weights and self._job
        self._ahead.stop(batch)
        if self._begun and self._begun.path not in names:
            self._weights.forget_kin([self._begun])
        self._begun = None
        parcel = self._parcel
        units = rest = [self._units[name] for name in names]
        for unit in units:
            if reason := self._too_large(unit):
                parcel.add([unit.path, reason, b"", True], 0)
                yield pack(parcel.take())
                rest = [other for other in rest if other is not unit]
        while rest := [unit for unit in rest if (number, batch, unit.path) not in self._skipped]:
            try:
                for unit, result in metered(self._job.label, self._results(rest)):
                    rest = rest[1:]
                    for entry in _entries(unit, to_pieces(self._job, result)):
                        if parcel.add(entry, len(entry[2])):
                            yield pack(parcel.take())
                    again = any((number, batch, unit.path) in self._skipped for unit in rest)
                    if parcel.is_due(unit.nbytes, rest[0].nbytes if rest and not again else None):
                        yield pack(parcel.take())
                    if again:
                        break
            except Exception as error:  # whatever it is, it is the item's; a second worker will tell
                parcel.add([rest[0].path, f"{type(error).__name__}: {error}", b"", True], 0)
                yield pack(parcel.take())
                rest = rest[1:]
        self._ahead.stop(batch)
        self._weights.forget_kin(units, keep=self._begun.path if self._begun else "")
        if self._loans:
            self._loans.give_back()

    def _results(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, Any]]:
        assert self._source and self._weights and self._job
        job = self._job
        if self._loans:  # its files are filled for one batch, so they are opened for one
            return self._loans.before(units, in_process(self._source, job, units))

        def telling(unit: Unit, weight: mx.array) -> Any:
            if unit is units[-1]:
                self._read_ahead()
            return job(unit, weight)

        job.ready(units)
        return do(telling, units, self._weights)

    def expect(self, number: int, batch: int, names: Sequence[str]) -> None:
        """This batch will come: read ahead what it begins with, once the disk has nothing to do."""
        if number == self._number and not self._loans:
            self._ahead.want(batch, tuple(self._parts(names)), names[0])

    def borrow_from(self, peers: Peers) -> None:
        """Borrow from these peers from now on."""
        if self._borrower:
            self._borrower.lent_by(peers)

    def skip(self, number: int, batch: int, names: Sequence[str]) -> None:
        """Do not begin these units of a batch."""
        self._skipped.update((number, batch, name) for name in names)

    def ping(self) -> bool:
        """Whether anybody is there."""
        return True

    def _read_ahead(self) -> None:
        """The last weight of a batch has been read: begin the next batch, or let that be read when it is announced.

        The estimate of a unit's peak has room for the next, which is no larger: the largest come first.
        """
        assert self._weights
        name = self._ahead.next
        if name and not memory_is_short():
            self._begun = self._units[name]
            self._weights.begin(self._begun)
        elif not name:
            self._ahead.free()

    def _too_large(self, unit: Unit) -> str:
        """Why this machine does not take a unit, rather than be killed for it; empty when it has room."""
        needed = peak_bytes(unit, self._tensors)
        if needed <= self._memory:
            return ""
        return f"it takes about {format_size(needed)} of memory, there are {format_size(self._memory)}"

    def _parts(self, names: Sequence[str]) -> Iterator[Part]:
        """Where the sources of the first of these units lie, and of as many others as make `AHEAD_BYTES`."""
        assert self._source
        nbytes = 0
        for unit in (self._units[name] for name in names):
            nbytes += unit.nbytes
            if nbytes > max(AHEAD_BYTES, unit.nbytes):
                return
            for tensor in (self._tensors[name] for name in unit.sources):
                yield self._source.folder / tensor.shard, tensor.offset, tensor.nbytes

    def _path(self, shard: str) -> Path:
        assert self._folder
        return self._folder / shard


def views() -> Path:
    """Where the views of this user's models lie."""
    return cache_folder() / "views"


def _has(path: Path, text: bytes) -> bool:
    return path.is_file() and path.read_bytes() == text


def _entries(unit: Unit, pieces: Iterator[bytes]) -> Iterator[list[Any]]:
    held = next(pieces)
    for piece in pieces:
        yield [unit.path, "", held, False]
        held = piece
    yield [unit.path, "", held, True]
