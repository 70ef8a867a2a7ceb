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

from cluster.inventory import Held, Inventory
from cluster.view import Outline
from mint.analysis import Measurement, from_record, to_fields, to_record
from mint.execute import Job
from mint.formats import parse_format
from mint.jobs import Packed, measure, quantize_as_planned, ready_kernels
from mint.progress import ignore
from mint.source import Source
from mint.units import Unit

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

    function: Callable[..., Any]
    tell: Callable[[Any], dict[str, Any]]
    make: Callable[[dict[str, Any]], Job[Any]]
    to_pieces: Callable[[Any], Iterator[bytes]]
    from_pieces: Callable[[Unit, dict[str, Any], Sequence[bytes]], Any]


def _tell_measure(job: "partial[Measurement]") -> dict[str, Any]:
    return {"rounding": job.keywords["rounding"]}


def _make_measure(told: dict[str, Any]) -> Job[Measurement]:
    ready_kernels(told["rounding"], ignore)
    return partial(measure, rounding=told["rounding"])


def _tell_quantize(job: "partial[Packed]") -> dict[str, Any]:
    formats, rounding = job.args
    return {"formats": {path: str(format) for path, format in formats.items()}, "rounding": rounding}


def _make_quantize(told: dict[str, Any]) -> Job[Packed]:
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


_KINDS = {
    "measure": _Kind(
        measure,
        _tell_measure,
        _make_measure,
        lambda measurement: iter((pack(to_record(measurement)),)),
        lambda unit, told, pieces: from_record(unpack(pieces[0])),
    ),
    "quantize": _Kind(quantize_as_planned, _tell_quantize, _make_quantize, _packed_pieces, _packed_from),
}


def can_travel(job: Job[Any]) -> bool:
    """Whether a job can be told to another process."""
    return isinstance(job, partial) and any(job.func is kind.function for kind in _KINDS.values())


def tell_job(job: Job[Any]) -> dict[str, Any]:
    """A job of a verb of `mint` as a plain record."""
    assert isinstance(job, partial)
    name, kind = next((name, kind) for name, kind in _KINDS.items() if job.func is kind.function)
    return {"job": name, **kind.tell(job)}


def make_job(told: dict[str, Any]) -> Job[Any]:
    """The job that was told, ready to be done; compiles what it needs."""
    return _KINDS[told["job"]].make(told)


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
    return tuple(Unit(*_with_tuples(fields)) for fields in told["units"])


def _with_tuples(fields: list[Any]) -> list[Any]:
    return [tuple(value) if isinstance(value, list) else value for value in fields]


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
