"""Messages as msgpack: jobs, models, descriptions of nodes and results, each with a way there and a way back.

A job describes itself and encodes its own results (`mint.run.job`), so nothing is rounded on the way. Every function
that reads a message raises `MintError` for one that this version cannot read.

Small results travel together, since a message costs Ray a quarter of a millisecond, however small it is. The wait of a
result for the next ones is limited: from the first result to the expected end of the next unit (by its bytes and the
pace of the last unit) at most `HOLD_SECONDS`, and a twentieth of the time that the worker has worked. So no message is
older than that, the deadlines of the head stay exact, a large unit never delays the small ones before it, and the head
distributes the last units by recent news.

Large results travel in pieces. A batch sends one result after the other, so at most one result of a worker is held in
pieces, a large one in a temporary file.
"""

import hashlib
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from math import inf
from mmap import ACCESS_READ, mmap
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Generic, TypeVar

import msgpack

from cluster.copies.inventory import Held, Holder, Inventory
from cluster.schedule.events import Arrived, Failed, Piece
from mint.core.cache import cache_folder
from mint.core.errors import MintError
from mint.core.records import reading, typed
from mint.formats.format import parse_format
from mint.formats.units import Parameter, Unit, from_fields, to_fields
from mint.model.checkpoint.file_states import FileStates
from mint.model.checkpoint.shards import read_shards, shard_names
from mint.model.checkpoint.sparse_copy import Outline
from mint.model.module_tree import OpenedModel
from mint.model.source import Source
from mint.run.job import PortableJob, job_path, load_job

PIECE_BYTES = 8 << 20  # of a result, at most; source weights never travel beside them
MEMORY_BYTES = 256 << 20  # of a result that is held in memory; more of it goes to a file
HOLD_SECONDS = 0.25
HOLD_SHARE = 0.05  # of the time worked so far
PARCEL_BYTES = 256 << 10  # a parcel with so many is sent; packed weights have more and travel as they come

T = TypeVar("T")


def pack(record: Any) -> bytes:
    """A record as bytes: plain values, and dataclasses of them."""
    packed: bytes = msgpack.packb(record, default=asdict)
    return packed


@contextmanager
def _reading(subject: str) -> Iterator[None]:
    """Turn the errors of reading a malformed record into one `MintError`."""
    needed = "needed: one of this version of mint, as on every node of the cluster"
    with reading(f"{subject} cannot be read", needed):
        yield


@_reading("a message")
def unpack(data: bytes) -> Any:
    """The record that `pack` was given, in plain values; tuples are lists, dataclasses are dicts."""
    return msgpack.unpackb(data, strict_map_key=False)


def tell_job(job: PortableJob[Any]) -> dict[str, Any]:
    """A job as a plain record."""
    return {"job": job_path(job), "fields": job.to_dict()}


def make_job(record: Mapping[str, Any], source: Source, previous: PortableJob[Any] | None = None) -> PortableJob[Any]:
    """The job of a record, ready to be done with `source`; it may take over files and models of the `previous` one."""
    with _reading("the record of a job"):
        job = load_job(record["job"]).from_dict(record["fields"], source)
    job.prepare(previous)
    return job


def to_pieces(job: PortableJob[T], result: T) -> Iterator[tuple[bytes, bool]]:
    """A result in pieces of bounded size, with a mark on the last: the digest of the others."""
    digest = hashlib.sha256()
    for buffer in job.encode(result):
        view = memoryview(buffer).cast("B")
        for start in range(0, len(view), PIECE_BYTES):
            piece = bytes(view[start : start + PIECE_BYTES])
            digest.update(piece)
            yield piece, False
    yield digest.digest(), True


def from_pieces(job: PortableJob[T], unit: Unit, pieces: Sequence[Piece]) -> T:
    """The result of a job for `unit`, from all its pieces."""
    with _reading(f"the result for {unit.path}"):
        *body, digest = pieces
        data = memoryview(body[0] if len(body) == 1 else b"".join(body))
        if hashlib.sha256(data).digest() != digest:
            raise MintError(f"the result for {unit.path} was changed on its way; run the same command again")
        return job.decode(unit, data)


def tell_model(source: Source, outlines: Mapping[str, Outline]) -> dict[str, Any]:
    """A model as a worker needs it that lacks some shards: everything but the weights."""
    return {
        "config_text": (source.folder / "config.json").read_bytes(),
        "config": source.config,
        "dtype": source.dtype,
        "loader": source.loader,
        "identity": source.identity,
        "units": [to_fields(unit) for unit in source.units],
        "parameters": [to_fields(parameter) for parameter in source.parameters],
        "dropped": source.dropped,
        "carried": {path: str(format) for path, format in source.carried.items()},
        "stacks": {path: [leaf.name for leaf in leaves] for path, leaves in source.stacks.items()},
        "outlines": dict(outlines),
    }


@_reading("the record of a model")
def config_of(record: Mapping[str, Any]) -> tuple[str, bytes]:
    """The identity and the text of the config in the record of a model."""
    identity, text = record["identity"], record["config_text"]
    if not (isinstance(identity, str) and isinstance(text, bytes)):
        raise TypeError(f"found an identity {identity!r}")
    return identity, text


@_reading("the record of a model")
def outlines_of(record: Mapping[str, Any]) -> dict[str, Outline]:
    """The outlines in the record of a model."""
    return {name: typed(Outline(**fields)) for name, fields in record["outlines"].items()}


def source_from(record: Mapping[str, Any], folder: Path, borrowed: Container[str] = ()) -> Source:
    """The model of a record as `folder` has it: the head opened and traced it, so only its headers are read here.

    `borrowed` shards change while their bytes come from other nodes.
    """
    files = FileStates.of(folder, [name for name in shard_names(folder) if name not in borrowed])
    shards = read_shards(folder)
    with _reading("the record of a model"):
        config, dtype, loader = record["config"], record["dtype"], record["loader"]
        units = tuple(from_fields(Unit, fields) for fields in record["units"])
        parameters = tuple(from_fields(Parameter, fields) for fields in record["parameters"])
        opened, dropped = OpenedModel(folder, config, shards, dtype, loader), tuple(record["dropped"])
        carried = {path: parse_format(name) for path, name in record["carried"].items()}
        stacks = opened.stacks({unit.path: unit.shape for unit in units}, record["stacks"])
        layout = shards, units, parameters, dropped
        return typed(Source(folder, config, dtype, loader, record["identity"], *layout, files, opened, carried, stacks))


@_reading("the description of a node")
def holder_from(record: Mapping[str, Any]) -> Holder:
    """The description of a node of a record."""
    node, folder, shards, faults = (record["inventory"][name] for name in ("node", "folder", "shards", "faults"))
    inventory = typed(Inventory(node, folder, tuple(typed(Held(**fields)) for fields in shards), tuple(faults)))
    return typed(Holder(**{**record, "inventory": inventory, "lent": tuple(record["lent"])}))


class Parcel(Generic[T]):
    """Entries that are held back, and for how long. One parcel serves all batches of a job from its begin."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: list[T] = []
        self._nbytes = 0
        self._since = 0.0  # when the first entry came
        self._began = self._last = clock()  # the job; when the last unit was done
        self._pace = inf  # seconds a byte of the last unit

    def add(self, entry: T, nbytes: int) -> bool:
        """Hold an entry with so many bytes; True if the parcel is full."""
        if not self._entries:
            self._since = self._clock()
        self._entries.append(entry)
        self._nbytes += nbytes
        return self._nbytes >= PARCEL_BYTES

    def is_due(self, done: int, following: int | None) -> bool:
        """True if the parcel is to be sent after a unit of `done` bytes, before one of `following` bytes or none."""
        now = self._clock()
        self._pace, self._last = (now - self._last) / max(done, 1), now
        if not self._entries:
            return False
        hold = min(HOLD_SECONDS, HOLD_SHARE * (now - self._began))
        return following is None or now + self._pace * following - self._since > hold

    def take(self) -> list[T]:
        """Empty the parcel; return its entries."""
        entries, self._entries, self._nbytes = self._entries, [], 0
        return entries


class Spool:
    """The pieces of one result in their order: in memory, and beyond `MEMORY_BYTES` in a file without a name."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._nbytes = 0
        self._file: IO[bytes] | None = None

    def add(self, piece: bytes) -> None:
        """Hold another piece."""
        self._pieces.append(piece)
        self._nbytes += len(piece)
        if self._file is None and self._nbytes <= MEMORY_BYTES:
            return
        if self._file is None:
            folder = cache_folder() / "cluster"
            folder.mkdir(parents=True, exist_ok=True)
            self._file = TemporaryFile(dir=folder)  # noqa: SIM115  # it is gone with its last reference
        self._file.writelines(self._pieces)
        self._pieces.clear()

    def take(self) -> Sequence[Piece]:
        """All pieces; those of a file as one, which the system reads when it is needed."""
        if self._file is None:
            return self._pieces
        self._file.flush()
        return [memoryview(mmap(self._file.fileno(), 0, access=ACCESS_READ))]


class Gathering:
    """The stream of one batch of a worker, with the pieces that wait for the rest of their result."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._pieces = Spool()

    def add(self, message: bytes) -> Iterator[Arrived | Failed]:
        """The events of this message, in its order: results that are whole now, and failures."""
        with _reading("a message with results"):
            entries = [
                (str(item), str(reason), memoryview(piece).tobytes(), bool(last))
                for item, reason, piece, last in unpack(message)
            ]
        for item, reason, piece, is_last in entries:
            if not is_last:
                self._pieces.add(piece)
                continue
            pieces, self._pieces = [*self._pieces.take(), piece], Spool()  # a failure has no use for them
            yield Failed(self._worker, item, reason) if reason else Arrived(self._worker, item, pieces)
