"""Every job and its results come back as they were, and an unreadable message has its error."""

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from cluster.copies.inventory import Held, Holder, Inventory
from cluster.schedule.events import Arrived
from cluster.transport import messages
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
from mint.formats.format import KEEP, TensorSpec, parse_format
from mint.formats.layout import lay_out
from mint.formats.units import Unit
from mint.model.checkpoint.reader import open_stored, open_weights
from mint.model.checkpoint.sparse_copy import Outline
from mint.model.checkpoint.writer import WeightFiles
from mint.model.source import Source, open_source
from mint.run import stacks
from mint.run.executor import in_process
from mint.run.job import PortableJob
from tests.worlds.damage import damaged
from tests.worlds.encodings import packed, quantized, write_encoded
from tests.worlds.jobs import Clipped, checksums_of
from tests.worlds.zoo import ARCHITECTURES, write_model


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


def _worker(source: Source, job: PortableJob[Any]) -> Worker:
    worker = Worker("node")
    worker.hello(str(source.folder))
    worker.open(1, pack(tell_model(source, {})), pack(tell_job(job)), {})
    return worker


def _done_by_a_worker(source: Source, job: PortableJob[Any]) -> dict[str, Any]:
    worker, gathering = _worker(source, job), Gathering("node")
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


@pytest.mark.parametrize("format", ["keep", "4/32"])
def test_a_stack_is_packed_block_by_block_on_a_node_and_written_so_by_the_head(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither holds it whole: the node packs a block while it sends the one before, the head takes it from a file."""
    recipe = ARCHITECTURES["qwen3_moe"]
    monkeypatch.setitem(ARCHITECTURES, "qwen3_moe", replace(recipe, config=recipe.config | {"num_experts": 768}))
    folder = write_model("qwen3_moe", tmp_path / "model")
    write_encoded(folder, r"experts.*up_proj\.weight$", packed())  # these lie on a grid
    source = open_source(folder)
    units = [unit for unit in source.units if len(unit.shape) == 3][:3]
    formats, checksums = {unit.path: parse_format(format) for unit in units}, checksums_of(source)
    whole = {unit.path: result for unit, result in in_process(source, Quantize(formats, checksums, "nearest"), units)}
    for module, name, value in (
        (stacks, "BLOCK", 1 << 14), (messages, "PIECE_BYTES", 1 << 14), (messages, "MEMORY_BYTES", 1 << 14)
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    layout = lay_out([result.tensors for result in whole.values()], digits=9)
    with WeightFiles(tmp_path, layout) as files:
        job = Quantize(formats, checksums, "nearest", files=files)
        worker = _worker(source, job)
        for _ in range(2):  # the first time compiles what it needs
            peak = _peak_bytes(lambda: _write(worker, job, units))
    stored = open_weights(tmp_path, [shard.name for shard in layout])
    for result in whole.values():
        assert _bytes(result) == [stored.raw(tensor.name).tobytes() for tensor in result.tensors]
    assert peak < min(sum(tensor.nbytes for tensor in result.tensors) for result in whole.values()) / 2


def _write(worker: Worker, job: Quantize, units: Sequence[Unit]) -> None:
    gathering = Gathering("node")
    for unit in units:
        for message in worker.run(1, 1, [unit.path]):
            for event in gathering.add(message):
                assert isinstance(event, Arrived), event
                assert not from_pieces(job, unit, event.pieces).data


def _peak_bytes(work: Callable[[], object]) -> int:
    """The bytes that `work` takes at most, of MLX and of Python with numpy."""
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    tracemalloc.start()
    work()
    python_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return mx.get_peak_memory() - before + python_bytes


def _pieces(job: PortableJob[Any], result: Any) -> list[bytes]:
    return [piece for piece, _ in to_pieces(job, result)]


def test_a_large_result_comes_in_pieces_and_one_that_was_changed_is_refused() -> None:
    unit = Unit("up", (4096, 4096), "BF16", "up", 0, ())
    data = np.random.default_rng(0).bytes(unit.nbytes)
    job = Quantize({"up": KEEP}, {})
    tensors = KEEP.tensors("up", unit.shape, unit.dtype)
    pieces, marks = zip(*to_pieces(job, Packed("up", KEEP, tensors, (data,))), strict=True)
    assert marks == (False,) * 5 + (True,)
    assert [len(piece) for piece in pieces] == [16] + [PIECE_BYTES] * 4 + [32]
    assert bytes(from_pieces(job, unit, pieces).data[0]) == data
    with pytest.raises(MintError, match="the result for up was changed on its way"):
        from_pieces(job, unit, [pieces[1], pieces[0], *pieces[2:]])


@pytest.mark.parametrize(
    "parts",
    [
        [(slice(0, 8), 7)], [(slice(0, 8), 9)], [(slice(0, 4), 4)], [(slice(4, 8), 4)], [(slice(0, 9), 9)],
        [(slice(0, 4), 4), (slice(5, 8), 3)], [(slice(4, 4), 0)], [],
    ],
)  # fmt: skip
def test_a_result_with_other_parts_than_those_of_its_unit_is_refused(parts: list[tuple[slice, int]]) -> None:
    unit = Unit("up", (8, 64), "BF16", "up", 0, ())
    job, tensors = Quantize({"up": KEEP}, {}), KEEP.tensors("up", unit.shape, unit.dtype)
    blocks = [(part, (bytes(128 * rows),)) for part, rows in parts] or iter(())
    with pytest.raises(MintError, match=r"up: .* of 8|the result for up cannot be read"):
        from_pieces(job, unit, _pieces(job, Packed("up", KEEP, tensors, (), blocks=blocks)))


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
    packed = Packed("up", KEEP, (TensorSpec("up.weight", "I8", (3,)),), (b"abc",))
    for reads in (
        lambda: unpack(b"\xc1"),
        lambda: unpack(pack([1, 2])[:-1]),
        lambda: source_from(tell_model(source, {}) | {"units": [[1]]}, source.folder),
        lambda: outlines_of({"outlines": {"shard": {"nbytes": 3}}}),
        lambda: holder_from({"inventory": {"node": "one"}}),
        lambda: from_pieces(Measure(), unit, []),
        lambda: from_pieces(Clipped(1.0), unit, _pieces(Quantize({}, {}), packed)),
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
