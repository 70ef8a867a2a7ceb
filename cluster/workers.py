"""What runs on a node: it says what the node holds, opens the model, and does batches of units with mint's own jobs.

Nothing here knows how calls and results travel. Everything but `ping` and `skip` is called by one thread, since MLX
arrays belong to the thread that makes them.
"""

import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cluster.ahead import Part, ReadAhead
from cluster.inventory import find_model, model_roots, take_inventory
from cluster.meter import metered
from cluster.view import Range, make_view, read_outline, read_ranges
from cluster.wire import (
    make_folder_name,
    make_job,
    outlines_of,
    pack,
    tell_inventory,
    to_pieces,
    units_of,
    unpack,
)
from mint.base import memory_for_models
from mint.budget import format_size
from mint.cache import cache_folder
from mint.device import device_kind, versions
from mint.execute import Job, Weights, do
from mint.jobs import peak_bytes
from mint.process import memory_is_short
from mint.shards import SourceTensor, read_shards
from mint.source import Source
from mint.units import Unit

AHEAD_BYTES = 1 << 30  # of a batch that comes next; or its first unit, if that is larger


class Worker:
    """The worker of one node."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._folder: Path | None = None
        self._opened: tuple[bytes, Path | None] | None = None  # the model as it was told, and where it lies
        self._source: Source | None = None
        self._weights: Weights | None = None
        self._tensors: dict[str, SourceTensor] = {}
        self._units: dict[str, Unit] = {}
        self._told: dict[str, Any] = {}
        self._job: Job[Any] | None = None
        self._name = ""
        self._skipped: set[tuple[int, str]] = set()
        self._ahead = ReadAhead()
        self._begun: Unit | None = None
        self._memory = memory_for_models()

    def hello(self, model: str) -> bytes:
        """What this node is, and its inventory of `model`."""
        self._folder = find_model(model, model_roots())
        return pack(
            {
                "pid": os.getpid(),
                "device": device_kind(),
                "memory_bytes": self._memory,
                "versions": {**versions(), "python": platform.python_version(), "ray": version("ray")},
                "inventory": tell_inventory(take_inventory(self._node, self._folder)),
            }
        )

    def outline(self, shard: str) -> bytes:
        """Size and header of a shard that this node holds."""
        outline = read_outline(self._path(shard))
        return pack([outline.nbytes, outline.header])

    def ranges(self, shard: str, ranges: Sequence[Range]) -> bytes:
        """These ranges of a shard that this node holds."""
        return pack(read_ranges(self._path(shard), ranges))

    def open(self, model: bytes, job: bytes) -> None:
        """Get ready to do `job` with units of `model`; what is the same as before is kept."""
        if self._opened != (model, self._folder):
            self._open_model(unpack(model))
            self._opened = model, self._folder
        assert self._source
        self._told = unpack(job)
        self._job = make_job(self._told, self._source, self._job)
        self._name = " ".join(filter(None, (self._told["job"], self._told.get("rounding"))))
        self._skipped.clear()

    def _open_model(self, told: dict[str, Any]) -> None:
        outlines = outlines_of(told)
        held = {path.name for path in self._folder.iterdir()} if self._folder else set()
        lacking = {name: outline for name, outline in outlines.items() if name not in held}
        self._units = {unit.path: unit for unit in units_of(told)}
        folder = self._folder
        if lacking or folder is None or not _has(folder / "config.json", told["config_text"]):
            view = views() / make_folder_name(told["identity"], folder)
            folder = make_view(view, folder, told["config_text"], lacking)
        shards = read_shards(folder)
        units = tuple(self._units.values())
        self._source = Source(folder, told["config"], told["dtype"], told["identity"], shards, units, (), ())
        self._tensors = self._source.tensors()
        self._weights = Weights(self._source, units)

    def run(self, batch: int, names: Sequence[str]) -> Iterator[bytes]:
        """Do these units in their order; messages `[unit, reason of failure, piece, whether it is the last]`."""
        assert self._weights and self._job
        self._ahead.stop(batch)
        if self._begun and self._begun.path not in names:
            self._weights.forget_kin([self._begun])
        self._begun = None
        units = rest = [self._units[name] for name in names]
        for unit in units:
            if reason := self._too_large(unit):
                yield pack([unit.path, reason, b"", True])
                rest = [other for other in rest if other is not unit]
        while rest := [unit for unit in rest if (batch, unit.path) not in self._skipped]:
            try:
                results = do(self._job, rest, self._weights, self._read_ahead)
                for unit, result in metered(self._name, results):
                    rest = rest[1:]
                    yield from _messages(unit, to_pieces(self._told, result))
                    if any((batch, unit.path) in self._skipped for unit in rest):
                        break
            except Exception as error:  # whatever it is, it is the item's; a second worker will tell
                yield pack([rest[0].path, f"{type(error).__name__}: {error}", b"", True])
                rest = rest[1:]
        self._ahead.stop(batch)
        self._weights.forget_kin(units, keep=self._begun.path if self._begun else "")

    def expect(self, batch: int, names: Sequence[str]) -> None:
        """This batch will come: read ahead what it begins with, once the disk has nothing to do."""
        self._ahead.want(batch, tuple(self._parts(names)), names[0])

    def skip(self, batch: int, names: Sequence[str]) -> None:
        """Do not begin these units of a batch."""
        self._skipped.update((batch, name) for name in names)

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


def _messages(unit: Unit, pieces: Iterator[bytes]) -> Iterator[bytes]:
    held = next(pieces)
    for piece in pieces:
        yield pack([unit.path, "", held, False])
        held = piece
    yield pack([unit.path, "", held, True])
