"""What travels: jobs, models, inventories and results as msgpack, each with a way there and a way back.

The results of a job come back as what its own journal would hold, so nothing is rounded on the way.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from cluster.copies.inventory import Held, Inventory
from cluster.copies.sparse_copy import Outline
from mint.analysis.analysis import Measurement, from_record, to_record
from mint.analysis.probes.probe_file import probe_of
from mint.analysis.probes.prober import ProbeJob, Probing, TextJob
from mint.analysis.unit_jobs import Packed, measure, quantize_as_planned, ready_kernels
from mint.core.progress import ignore
from mint.formats.format import parse_format
from mint.formats.units import Unit, from_fields, to_fields
from mint.model.source import Source
from mint.quality.divergence import Tokens
from mint.run.executor import Job

PIECE_BYTES = 8 << 20  # packed weights travel in pieces of at most; source weights never travel with Ray


def pack(record: Any) -> bytes:
    """Any plain record as bytes."""
    packed: bytes = msgpack.packb(record, use_bin_type=True)
    return packed


def unpack(data: bytes) -> Any:
    """The plain record that `pack` was given; tuples have become lists."""
    return msgpack.unpackb(data, raw=False, strict_map_key=False)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A job as it travels: how it is told, how it is made again beside a model, and how its results travel."""

    function: Callable[..., Any]  # of a partial call, or the class of the job
    tell: Callable[[Any], dict[str, Any]]
    make: Callable[[dict[str, Any], Source, Job[Any] | None], Job[Any]]  # given the job that was done before
    to_pieces: Callable[[Any], Iterator[bytes]]
    from_pieces: Callable[[Unit, dict[str, Any], Sequence[bytes]], Any]


def _tell_measure(job: "partial[Measurement]") -> dict[str, Any]:
    return {"rounding": job.keywords["rounding"]}


def _make_measure(told: dict[str, Any], _: Source, __: Job[Any] | None) -> Job[Measurement]:
    ready_kernels(told["rounding"], ignore)
    return partial(measure, rounding=told["rounding"])


def _tell_quantize(job: "partial[Packed]") -> dict[str, Any]:
    formats, rounding = job.args
    return {"formats": {path: str(format) for path, format in formats.items()}, "rounding": rounding}


def _make_quantize(told: dict[str, Any], _: Source, __: Job[Any] | None) -> Job[Packed]:
    ready_kernels(told["rounding"], ignore)
    formats = {path: parse_format(text) for path, text in told["formats"].items()}
    return partial(quantize_as_planned, formats, told["rounding"])


def _packed_pieces(packed: Packed) -> Iterator[bytes]:
    """The bytes of all tensors in one row, cut; the last piece is followed by their digest."""
    digest = hashlib.sha256()
    for data in packed.data:
        view = memoryview(data)
        for start in range(0, len(view), PIECE_BYTES):
            piece = bytes(view[start : start + PIECE_BYTES])
            digest.update(piece)
            yield piece
    yield digest.digest()


def _packed_from(unit: Unit, told: dict[str, Any], pieces: Sequence[bytes]) -> Packed:
    format = parse_format(told["formats"][unit.path])
    tensors = format.tensors(unit.path, unit.shape, unit.dtype)
    *body, digest = pieces
    row = memoryview(b"".join(body))
    assert hashlib.sha256(row).digest() == digest, f"{unit.path} was changed on its way"
    data, start = [], 0
    for tensor in tensors:
        data.append(row[start : start + tensor.nbytes])
        start += tensor.nbytes
    assert start == len(row), f"{unit.path} is not as planned"
    return Packed(unit.path, format, tensors, tuple(data))


def _tell_text(job: TextJob) -> dict[str, Any]:
    return {"probing": asdict(job.probing), "prefix": list(job.prefix)}


def _tell_probe(job: ProbeJob) -> dict[str, Any]:
    assert job.text.tokens is not None, "who probes is told what to look at: all nodes see the same"
    return {**_tell_text(job.text), "tokens": _tell_tokens(job.text.tokens)}


def _tell_tokens(tokens: Tokens) -> dict[str, Any]:
    return {"shape": list(tokens.shape), "bytes": tokens.astype("<i4").tobytes()}


def _tokens_from(told: dict[str, Any]) -> Tokens:
    return np.frombuffer(told["bytes"], "<i4").reshape(told["shape"])


def _make_text(told: dict[str, Any], source: Source, before: Job[Any] | None) -> TextJob:
    """The job, with the model of the one `before` where that is the same: opening a large one takes long."""
    text = before.text if isinstance(before, ProbeJob) else before
    probing = Probing(**told["probing"])
    same = (
        isinstance(text, TextJob)
        and (text.source.identity, text.source.dtype) == (source.identity, source.dtype)
        and text.probing.base == probing.base
    )
    model = text.model if same and isinstance(text, TextJob) else None
    tokens = _tokens_from(told["tokens"]) if "tokens" in told else None
    return TextJob(source, probing, told["prefix"], model=model, tokens=tokens)


def _make_probe(told: dict[str, Any], source: Source, before: Job[Any] | None) -> ProbeJob:
    return ProbeJob(_make_text(told, source, before))


_KINDS = {
    "measure": _Kind(
        measure,
        _tell_measure,
        _make_measure,
        lambda measurement: iter((pack(to_record(measurement)),)),
        lambda unit, told, pieces: from_record(unpack(pieces[0])),
    ),
    "quantize": _Kind(quantize_as_planned, _tell_quantize, _make_quantize, _packed_pieces, _packed_from),
    "text": _Kind(
        TextJob,
        _tell_text,
        _make_text,
        lambda tokens: iter((pack(_tell_tokens(tokens)),)),
        lambda unit, told, pieces: _tokens_from(unpack(pieces[0])),
    ),
    "probe": _Kind(
        ProbeJob,
        _tell_probe,
        _make_probe,
        lambda probe: iter((pack(asdict(probe)),)),
        lambda unit, told, pieces: probe_of(unpack(pieces[0])),
    ),
}


def can_travel(job: Job[Any]) -> bool:
    """Whether a job can be told to another process."""
    return any(_function(job) is kind.function for kind in _KINDS.values())


def measures(job: Job[Any]) -> bool:
    """Whether a job measures, which every kind of device may do."""
    return _function(job) is measure


def tell_job(job: Job[Any]) -> dict[str, Any]:
    """A job of a verb of `mint` as a plain record."""
    name, kind = next((name, kind) for name, kind in _KINDS.items() if _function(job) is kind.function)
    return {"job": name, **kind.tell(job)}


def make_job(told: dict[str, Any], source: Source, before: Job[Any] | None = None) -> Job[Any]:
    """The job that was told, to be done with `source`; compiles what it needs, takes over what the one `before` has."""
    return _KINDS[told["job"]].make(told, source, before)


def _function(job: Job[Any]) -> Any:
    return job.func if isinstance(job, partial) else type(job)


def to_pieces(told: dict[str, Any], result: Any) -> Iterator[bytes]:
    """A result in pieces of bounded size."""
    return _KINDS[told["job"]].to_pieces(result)


def from_pieces(told: dict[str, Any], unit: Unit, pieces: Sequence[bytes]) -> Any:
    """The result of a job for `unit`, from all its pieces."""
    return _KINDS[told["job"]].from_pieces(unit, told, pieces)


def tell_model(source: Source, outlines: Mapping[str, Outline]) -> dict[str, Any]:
    """What a worker must know of a model, beside the shards that it holds."""
    return {
        "config_text": (source.folder / "config.json").read_bytes(),
        "config": source.config,
        "dtype": source.dtype,
        "identity": source.identity,
        "units": [to_fields(unit) for unit in source.units],
        "outlines": {name: asdict(outline) for name, outline in outlines.items()},
    }


def outlines_of(told: dict[str, Any]) -> dict[str, Outline]:
    """The outlines in what was told of a model."""
    return {name: Outline(**fields) for name, fields in told["outlines"].items()}


def units_of(told: dict[str, Any]) -> tuple[Unit, ...]:
    """The units in what was told of a model."""
    return tuple(from_fields(Unit, fields) for fields in told["units"])


def tell_inventory(inventory: Inventory) -> dict[str, Any]:
    """An inventory as a plain record."""
    return asdict(inventory)


def inventory_from(told: dict[str, Any]) -> Inventory:
    """The inventory that was told."""
    shards = tuple(Held(**fields) for fields in told["shards"])
    return Inventory(told["node"], told["folder"], shards, tuple(told["faults"]))


def make_folder_name(identity: str, folder: Path | None) -> str:
    """A name for the view of a model over what lies in `folder`: two nodes on one machine have two."""
    return hashlib.sha256(f"{identity}\0{folder}".encode()).hexdigest()[:32]
