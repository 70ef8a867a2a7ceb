"""Messages as msgpack: jobs, models, descriptions of nodes and results, each with a way there and a way back.

A job describes itself and encodes its own results (`mint.run.job`), so nothing is rounded on the way. Every function
that reads a message raises `MintError` for one that this version cannot read.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import msgpack

from cluster.copies.holdings import Holder
from cluster.copies.inventory import Held, Inventory
from cluster.copies.sparse_copy import Outline
from mint.core.errors import MintError
from mint.formats.units import Parameter, Unit, from_fields, to_fields
from mint.model.checkpoint.shards import read_shards
from mint.model.module_tree import OpenedModel
from mint.model.source import Source
from mint.run.job import PortableJob, job_path, load_job

PIECE_BYTES = 8 << 20  # of a result, at most; source weights never travel beside them

T = TypeVar("T")


def pack(record: Any) -> bytes:
    """A record as bytes: plain values, and dataclasses of them."""
    packed: bytes = msgpack.packb(record, default=asdict)
    return packed


@contextmanager
def reading(subject: str) -> Iterator[None]:
    """Turn the errors of reading a malformed record into one `MintError`."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, msgpack.UnpackException) as error:
        raise MintError(
            f"{subject} cannot be read ({type(error).__name__}: {error}); needed: one of this version of mint, as "
            "on every node of the cluster"
        ) from error


@reading("a message")
def unpack(data: bytes) -> Any:
    """The record that `pack` was given, in plain values; tuples are lists, dataclasses are dicts."""
    return msgpack.unpackb(data, strict_map_key=False)


def tell_job(job: PortableJob[Any]) -> dict[str, Any]:
    """A job as a plain record."""
    return {"job": job_path(job), "fields": job.to_dict()}


def make_job(record: Mapping[str, Any], source: Source, previous: PortableJob[Any] | None = None) -> PortableJob[Any]:
    """The job of a record, ready to be done with `source`; it may take over files and models of the `previous` one."""
    with reading("the record of a job"):
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


def from_pieces(job: PortableJob[T], unit: Unit, pieces: Sequence[bytes]) -> T:
    """The result of a job for `unit`, from all its pieces."""
    with reading(f"the result for {unit.path}"):
        *body, digest = pieces
        data = memoryview(b"".join(body))
        if hashlib.sha256(data).digest() != digest:
            raise MintError(f"the result for {unit.path} was changed on its way; run the same command again")
        return job.decode(unit, data)


def tell_model(source: Source, outlines: Mapping[str, Outline]) -> dict[str, Any]:
    """A model as a worker needs it that lacks some shards: everything but the weights."""
    return {
        "config_text": (source.folder / "config.json").read_bytes(),
        "config": source.config,
        "dtype": source.dtype,
        "identity": source.identity,
        "units": [to_fields(unit) for unit in source.units],
        "parameters": [to_fields(parameter) for parameter in source.parameters],
        "dropped": source.dropped,
        "outlines": dict(outlines),
    }


@reading("the record of a model")
def outlines_of(record: Mapping[str, Any]) -> dict[str, Outline]:
    """The outlines in the record of a model."""
    return {name: Outline(**fields) for name, fields in record["outlines"].items()}


def source_from(record: Mapping[str, Any], folder: Path) -> Source:
    """The model of a record as `folder` has it: the head opened and traced it, so only its headers are read here."""
    shards = read_shards(folder)
    with reading("the record of a model"):
        config, dtype = record["config"], record["dtype"]
        units = tuple(from_fields(Unit, fields) for fields in record["units"])
        parameters = tuple(from_fields(Parameter, fields) for fields in record["parameters"])
        opened, dropped = OpenedModel(folder, config, shards, dtype), tuple(record["dropped"])
        return Source(folder, config, dtype, record["identity"], shards, units, parameters, dropped, opened)


@reading("the description of a node")
def holder_from(record: Mapping[str, Any]) -> Holder:
    """The description of a node of a record."""
    node, folder, shards, faults = (record["inventory"][name] for name in ("node", "folder", "shards", "faults"))
    inventory = Inventory(node, folder, tuple(Held(**fields) for fields in shards), tuple(faults))
    return Holder(**{**record, "inventory": inventory, "lent": tuple(record["lent"])})
