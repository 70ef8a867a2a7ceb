"""Every job and its results come back as they were, and an unreadable message has its error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.copies.inventory import Held, Holder, Inventory
from cluster.schedule.events import Arrived
from cluster.transport.messages import (
    PIECE_BYTES,
    Gathering,
    config_of,
    from_pieces,
    holder_from,
    make_job,
    outlines_of,
    pack,
    source_from,
    tell_job,
    tell_model,
    to_pieces,
    unpack,
)
from cluster.transport.worker import Worker
from mint.analysis.probes.prober import ProbeJob, Probing, TextJob
from mint.analysis.unit_jobs import Measure, Packed, Quantize
from mint.core.errors import MintError
from mint.formats.format import KEEP
from mint.formats.units import Unit
from mint.model.checkpoint.reader import open_stored
from mint.model.checkpoint.sparse_copy import Outline
from mint.model.source import Source, open_source
from mint.run.executor import in_process
from mint.run.job import PortableJob
from tests.worlds.damage import damaged
from tests.worlds.encodings import quantized, write_encoded
from tests.worlds.jobs import Clipped, checksums_of
from tests.worlds.zoo import write_model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(write_model("llama", tmp_path_factory.mktemp("models") / "llama", tokenizer=True))


def test_a_worker_knows_the_whole_model(source: Source) -> None:
    assert source_from(unpack(pack(tell_model(source, {}))), source.folder) == source


@pytest.mark.parametrize("name", ["deepseek_v3_fp8", "gpt_oss_mxfp4"])
def test_a_worker_knows_the_slices_of_encoded_stacks(name: str, tmp_path: Path) -> None:
    source = open_source(write_model(name, tmp_path / name))
    assert source.stacks
    assert source_from(unpack(pack(tell_model(source, {}))), source.folder).stacks == source.stacks


def _done_by_a_worker(source: Source, job: PortableJob[Any]) -> dict[str, Any]:
    worker, gathering = Worker("node"), Gathering("node")
    worker.hello(str(source.folder))
    worker.open(1, pack(tell_model(source, {})), pack(tell_job(job)), {})
    units = {unit.path: unit for unit in source.units}
    arrived = [event for message in worker.run(1, 1, list(units)) for event in gathering.add(message)]
    return {
        event.item: from_pieces(job, units[event.item], event.pieces) for event in arrived if isinstance(event, Arrived)
    }


def _bytes(result: Any) -> Any:
    return [bytes(data) for data in result.data] if isinstance(result, Packed) else result


def _jobs(source: Source) -> list[PortableJob[Any]]:
    text = TextJob(source, Probing("random", 2, 8, base="full"), ())
    text.tokens = text.written()
    quantize = Quantize(
        {unit.path: next(iter(unit.formats), KEEP) for unit in source.units}, checksums_of(source), "search"
    )
    return [Measure("search"), quantize, text, ProbeJob(text), Clipped(0.02)]


@pytest.mark.parametrize("number", range(5))
def test_every_job_has_the_same_result_here_and_behind_the_wire_also_one_that_nobody_knew(
    source: Source, number: int
) -> None:
    job = _jobs(source)[number]
    here = {unit.path: _bytes(result) for unit, result in in_process(source, job, source.units)}
    there = {path: _bytes(result) for path, result in _done_by_a_worker(source, job).items()}
    np.testing.assert_equal(there, here)


def test_a_worker_copies_the_units_that_are_stored_in_their_format(tmp_path: Path) -> None:
    folder = write_model("llama", tmp_path / "llama")
    entry = {"group_size": 64, "bits": 4, "mode": "affine"}
    write_encoded(folder, r"_proj\.weight$", quantized(), {"quantization": entry})
    source = open_source(folder, requantize=True)
    measured = _done_by_a_worker(source, Measure("nearest", carried=source.carried))
    assert source.carried and all(measured[path].error(format) == 0 for path, format in source.carried.items())
    formats = {unit.path: source.carried.get(unit.path, KEEP) for unit in source.units}
    packed = _done_by_a_worker(source, Quantize(formats, checksums_of(source), "nearest", source))
    stored = open_stored(folder)
    for path in source.carried:
        assert _bytes(packed[path]) == [stored.raw(tensor.name).tobytes() for tensor in packed[path].tensors]


def _pieces(job: PortableJob[Any], result: Any) -> list[bytes]:
    return [piece for piece, _ in to_pieces(job, result)]


def test_a_large_result_comes_in_pieces_and_one_that_was_changed_is_refused() -> None:
    unit = Unit("up", (4096, 4096), "BF16", "up", 0, ())
    data = np.random.default_rng(0).bytes(unit.nbytes)
    job = Quantize({"up": KEEP}, {})
    packed = Packed("up", KEEP, KEEP.tensors("up", unit.shape, unit.dtype), (data,))
    pieces = _pieces(job, packed)
    assert [is_last for _, is_last in to_pieces(job, packed)] == [False] * 4 + [True]
    assert [len(piece) for piece in pieces] == [PIECE_BYTES] * 4 + [32]
    assert bytes(from_pieces(job, unit, pieces).data[0]) == data
    with pytest.raises(MintError, match="the result for up was changed on its way"):
        from_pieces(job, unit, [pieces[1], pieces[0], *pieces[2:]])
    short = _pieces(job, Packed("up", KEEP, (), (data[:-2],)))
    with pytest.raises(MintError, match=f"up: {unit.nbytes - 2} bytes came, needed the {unit.nbytes} bytes"):
        from_pieces(job, unit, short)


@pytest.mark.parametrize(
    "record",
    [
        {},
        None,
        {"job": "mint.analysis.unit_jobs:Measure"},
        {"job": "mint.analysis.unit_jobs:Measure", "fields": {}},
        {
            "job": "mint.analysis.unit_jobs:Quantize",
            "fields": {"formats": {"up": "no format"}, "checksums": {}, "rounding": "nearest"},
        },
        {"job": 3, "fields": {}},
        {"job": "mint.analysis.unit_jobs:Nothing", "fields": {}},
        {"job": "mint.analysis.unit_jobs:Packed", "fields": {}},
        {"job": "os:getcwd", "fields": {}},
        {"job": "no_such_module:Job", "fields": {}},
    ],
)
def test_a_record_that_is_no_job_is_refused_and_says_what_is_needed(source: Source, record: Any) -> None:
    with pytest.raises(MintError, match="needed"):
        make_job(record, source)


def test_messages_that_cannot_be_read_say_so(source: Source) -> None:
    unit = Unit("up", (64, 64), "BF16", "up", 0, ())
    for reads in (
        lambda: unpack(b"\xc1"),
        lambda: unpack(pack([1, 2])[:-1]),
        lambda: source_from(tell_model(source, {}) | {"units": [[1]]}, source.folder),
        lambda: outlines_of({"outlines": {"shard": {"nbytes": 3}}}),
        lambda: holder_from({"inventory": {"node": "one"}}),
        lambda: from_pieces(Measure(), unit, []),
        lambda: from_pieces(Clipped(1.0), unit, _pieces(Quantize({}, {}), Packed("up", KEEP, (), (b"abc",)))),
    ):
        with pytest.raises(MintError, match=r"cannot be read .* needed: one of this version of mint"):
            reads()


def test_a_message_with_any_field_that_is_gone_or_wrong_is_refused_or_read(source: Source) -> None:
    """No other error than `MintError` comes of it, and nothing is compiled for it."""
    model = unpack(pack(tell_model(source, {"shard": Outline(10, b"header")})))
    jobs = [unpack(pack(tell_job(job))) for job in (Measure("search"), Quantize({"up": KEEP}, {"up": "0"}, "nearest"))]
    held = Held("model.safetensors", 10, "0", "0")
    holder = unpack(pack(Holder(Inventory("node", "", (held,)), "cpu", 10**9, 1, {"mlx": "0"})))
    reads: list[tuple[Any, Callable[[Any], object]]] = [
        (model, lambda record: (config_of(record), outlines_of(record), source_from(record, source.folder))),
        *((job, lambda record: make_job(record, source)) for job in jobs),
        (holder, holder_from),
        ([["up", "", b"", True]], lambda record: list(Gathering("node").add(pack(record)))),
    ]
    refused = 0
    for record, read in reads:
        for wrong in damaged(record):
            try:
                read(wrong)
            except MintError:
                refused += 1
    assert refused > 200
