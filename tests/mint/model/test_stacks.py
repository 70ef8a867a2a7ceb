"""A large stack of experts comes block by block: the same weights, measurements and bytes, in little memory."""

import tracemalloc
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
import pytest

from mint.analysis.analyze import analyze
from mint.analysis.compensation_job import Compensation
from mint.analysis.probes import packed_weight
from mint.analysis.probes.probe_file import FULL
from mint.analysis.probes.prober import ProbeJob, Probing, TextJob
from mint.analysis.unit_inputs import Inputs
from mint.analysis.unit_jobs import Measure, Quantize
from mint.assembly.assemble import assemble
from mint.assembly.reuse import Reuse
from mint.assembly.verify import verify
from mint.formats.format import parse_format
from mint.formats.layout import lay_out
from mint.formats.units import Unit
from mint.model.checkpoint.writer import WeightFiles
from mint.model.source import Source, open_source
from mint.model.storages import storage
from mint.plan.allocate import allocate
from mint.plan.recipe import Recipe
from mint.quality.sequences import TextSize
from mint.run import stacks
from mint.run.blas import multiplies_slowly
from mint.run.executor import in_process
from mint.run.job import BlockJob, Blocks, Job
from mint.run.stacks import comes_in_blocks
from tests.worlds.encodings import Encoding, fp8, int8, mxfp4, nvfp4, packed, write_encoded
from tests.worlds.jobs import checksums_of
from tests.worlds.zoo import ARCHITECTURES, write_model

T = TypeVar("T")
EXPERTS = r"experts.*(proj|w\d)\.weight$"
STACKS = [
    "qwen3_moe", "mixtral", "granitemoe", "jamba", "deepseek_v3_fp8", "minimax", "llama4", "gpt_oss", "gpt_oss_mxfp4",
    "qwen3_next", "qwen3_5_moe",
]  # fmt: skip


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "BLOCK", 40_000)


class Whole(BlockJob[mx.array]):
    """Puts the blocks of a weight together."""

    def of_blocks(self, unit: Unit, blocks: Blocks) -> mx.array:
        return mx.concatenate(list(blocks())).reshape(unit.shape)


def _experts(source: Source) -> list[Unit]:
    return [unit for unit in source.units if len(unit.shape) == 3 and unit.path.endswith("proj")]


def _check_blocks(source: Source) -> None:
    """Every stack of experts comes in blocks, which are its weight bit by bit."""
    units, whole = _experts(source), source.arrays()
    assert units and all(comes_in_blocks(source, unit) for unit in units)
    for unit, weight in in_process(source, Whole(), units):
        expected = whole.pop(f"{unit.path}.weight")
        assert weight.dtype == expected.dtype
        assert mx.array_equal(weight, expected), unit.path


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.usefixtures("small_blocks")
def test_the_blocks_of_a_stack_are_its_weight(name: str, tmp_path: Path) -> None:
    _check_blocks(open_source(write_model(name, tmp_path / "model"), loader="mlx_lm"))


@pytest.mark.parametrize("encoding", [packed(), fp8(), int8(), mxfp4(), nvfp4()])
@pytest.mark.usefixtures("small_blocks")
def test_the_blocks_of_encoded_experts_are_their_weight(encoding: Encoding, tmp_path: Path) -> None:
    folder = write_model("qwen3_moe", tmp_path / "model")
    write_encoded(folder, EXPERTS, encoding)
    _check_blocks(open_source(folder))


@pytest.mark.parametrize("encoding", [fp8(), fp8(kind="scalar"), fp8(kind="row"), int8(zeros=True), mxfp4(), nvfp4()])
@pytest.mark.usefixtures("small_blocks")
def test_the_blocks_of_an_encoded_stack_are_its_weight(encoding: Encoding, tmp_path: Path) -> None:
    folder = write_model("granitemoe", tmp_path / "model")
    write_encoded(folder, r"(input|output)_linear\.weight$", encoding)
    _check_blocks(open_source(folder))


@pytest.mark.usefixtures("small_blocks")
def test_a_cast_stack_has_the_dtype_of_the_request(tmp_path: Path) -> None:
    _check_blocks(open_source(write_model("qwen3_moe", tmp_path / "model"), dtype="float32"))


def _both(source: Source, job: Job[T], monkeypatch: pytest.MonkeyPatch) -> tuple[list[T], list[T]]:
    """The results for all stacks of experts, whole and in blocks."""
    units, results = _experts(source), []
    for block in (1 << 40, 40_000):
        monkeypatch.setattr(stacks, "BLOCK", block)
        results.append([result for _, result in in_process(source, job, units)])
    return results[0], results[1]


@pytest.mark.parametrize("rounding", ["nearest", "search"])
@pytest.mark.parametrize("encoding", [None, packed(), fp8()])
def test_a_stack_in_blocks_is_measured_and_packed_to_the_same_bytes(
    encoding: Encoding | None, rounding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model("qwen3_moe", tmp_path / "model")
    if encoding:
        write_encoded(folder, EXPERTS, encoding)
    source = open_source(folder)
    whole, blocks = _both(source, Measure(rounding), monkeypatch)
    assert whole == blocks
    checksums = checksums_of(source)
    for format in map(parse_format, ("4/32", "3/64", "keep")):
        job = Quantize({unit.path: format for unit in source.units}, checksums, rounding)
        packed_whole, packed_blocks = _both(source, job, monkeypatch)
        assert packed_whole == packed_blocks


@pytest.mark.parametrize(
    ("name", "base"), [("qwen3_moe", FULL), ("gpt_oss", "4"), ("deepseek_v3", "4"), ("llama4", FULL)]
)
def test_probes_of_stacks_in_blocks_are_the_same(
    name: str, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the model that is packed in blocks and of the unit that is stored coarsely.

    To the last bit in the reference BLAS of MLX's wheel; OpenBLAS adds in an order that depends on the number of rows.
    """
    source, probes = open_source(write_model(name, tmp_path / "model")), []
    units = [unit for unit in source.units if unit.role in ("head", "expert_up", "expert_gate", "expert_down")]
    for block in (1 << 40, 40_000):
        monkeypatch.setattr(stacks, "BLOCK", block)
        monkeypatch.setattr(packed_weight, "BLOCK", block)
        job = ProbeJob(TextJob(source, Probing("random", 2, 24, base=base), ()))
        probes.append([result for _, result in in_process(source, job, units)])
    if multiplies_slowly():
        assert probes[0] == probes[1]
    for whole, in_blocks in zip(*probes, strict=True):
        assert (in_blocks.path, in_blocks.error) == (whole.path, whole.error)
        assert in_blocks.kls == pytest.approx(whole.kls, rel=1e-3)
    assert min(probe.kl for probe in probes[0]) > 0
    assert len(probes[0]) > 1


def test_an_analysis_with_features_is_the_same_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, analyses = open_source(write_model("qwen3_moe", tmp_path / "model")), []
    for block in (1 << 40, 40_000):
        monkeypatch.setattr(stacks, "BLOCK", block)
        analyze(source, tmp_path / f"{block}.mint", features=True)
        analyses.append((tmp_path / f"{block}.mint").read_bytes())
    assert analyses[0] == analyses[1]


@pytest.mark.parametrize("rounding", ["nearest", "compensate"])
def test_a_model_with_stacks_in_blocks_is_written_to_the_same_bytes(
    rounding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(write_model("qwen3_moe", tmp_path / "model", tokenizer=True))
    analysis = analyze(source, tmp_path / "a.mint", rounding=rounding)
    locks = tuple(f"{unit.path}=keep" for unit in _experts(source)[:2])
    plan, manifests = allocate(analysis, "0.7x", Recipe(rounding, lock=locks)), []
    for block in (1 << 40, 40_000):
        monkeypatch.setattr(stacks, "BLOCK", block)
        manifests.append(assemble(plan, source, tmp_path / f"{block}", text=TextSize(2, 16)))
    assert manifests[0] == manifests[1]
    again = assemble(plan, source, tmp_path / "again", reuse=Reuse([tmp_path / "40000"]), text=TextSize(2, 16))
    assert again == manifests[0]
    if rounding == "nearest":
        assert verify(tmp_path / "40000", source).passed


def test_a_stack_in_blocks_is_compensated_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(write_model("qwen3_moe", tmp_path / "model"))
    formats = {unit.path: parse_format("3/64") for unit in source.units}
    random = np.random.default_rng(0)
    inputs = {
        unit.path: Inputs(
            random.standard_normal((300, unit.shape[-1]), np.float32), random.integers(0, 8, (300, 2), dtype=np.int64)
        )
        for unit in source.units
    }
    checksums = checksums_of(source)
    whole, blocks = _both(source, Compensation(formats, checksums, inputs, source=source), monkeypatch)
    assert whole == blocks


@pytest.mark.parametrize("encoding", [None, packed(), fp8()])
@pytest.mark.parametrize("job", ["measure", "4/32", "keep"])
def test_a_stack_takes_little_memory(
    encoding: Encoding | None, job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peak memory of MLX and of Python: one stack takes twice its decoded size if it is whole, and its packed form."""
    folder = _many_experts(tmp_path / "model", monkeypatch)
    if encoding:
        write_encoded(folder, EXPERTS, encoding)
    source = open_source(folder)
    _check_memory(source, _experts(source)[:2], job, tmp_path, monkeypatch)


def _check_memory(source: Source, units: list[Unit], job: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checksums = checksums_of(source)
    monkeypatch.setattr(stacks, "BLOCK", 16_384)
    with ExitStack() as opened:
        measuring: Job[Any] = Measure("nearest")
        if job != "measure":
            format = parse_format(job)
            layout = lay_out([format.tensors(unit.path, unit.shape, unit.dtype) for unit in units], digits=9)
            files = opened.enter_context(WeightFiles(folder, layout))
            measuring = Quantize({unit.path: format for unit in units}, checksums, "nearest", source, files)
        assert _peak_bytes(source, measuring, units) < units[0].nbytes / 3


@pytest.mark.parametrize("encoding", [fp8(), packed(), mxfp4()])
def test_encoded_experts_take_no_more_memory_than_those_of_the_plain_twin(
    encoding: Encoding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _many_experts(tmp_path / "model", monkeypatch)
    twin = write_encoded(folder, EXPERTS, encoding)
    monkeypatch.setattr(stacks, "BLOCK", 1 << 18)
    monkeypatch.setattr(storage, "LARGE", 0)
    monkeypatch.setattr(storage, "BLOCK", 1 << 14)
    peaks = [
        _peak_bytes(source, Measure("nearest"), _experts(source)[:2]) for source in map(open_source, (folder, twin))
    ]
    assert peaks[0] <= peaks[1]


@pytest.mark.parametrize("base", [FULL, "4"])
def test_a_probe_unpacks_no_stack_whole(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the probed one nor, around a base, the others."""
    source = open_source(_many_experts(tmp_path / "model", monkeypatch))
    units = _experts(source)[:2]
    monkeypatch.setattr(stacks, "BLOCK", 16_384)
    job = ProbeJob(TextJob(source, Probing("random", 1, 4, base=base), ()))
    assert _peak_bytes(source, job, units) < units[0].size * 4 / 2


def _large_table(folder: Path, monkeypatch: pytest.MonkeyPatch, rows: int = 4999) -> tuple[Source, Unit]:
    """A model whose embedding comes in blocks of rows, with an odd number of rows."""
    recipe = ARCHITECTURES["llama"]
    monkeypatch.setitem(ARCHITECTURES, "llama", replace(recipe, config=recipe.config | {"vocab_size": rows}))
    source = open_source(write_model("llama", folder))
    return source, next(unit for unit in source.units if unit.role == "embedding")


@pytest.mark.parametrize("dtype", ["", "float32"])
def test_a_matrix_in_blocks_of_rows_is_measured_and_packed_as_a_whole_one(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes are the same; sums of errors are added in another order."""
    path = _large_table(tmp_path / "model", monkeypatch)[1].path
    source, checksums = open_source(tmp_path / "model", dtype=dtype), {}
    table = next(unit for unit in source.units if unit.path == path)
    for block in (1 << 40, 40_000):
        monkeypatch.setattr(stacks, "BLOCK", block)
        ((_, measured),) = in_process(source, Measure("nearest"), [table])
        checksums[block] = measured.checksum, measured.nonfinite, np.array([measured.energy, *measured.errors])
    whole, blocks = checksums.values()
    assert whole[:2] == blocks[:2]
    np.testing.assert_allclose(whole[2], blocks[2], rtol=1e-7)
    for format in map(parse_format, ("4/32", "3/64", "mxfp4", "keep")):
        results = []
        for block in (1 << 40, 40_000):
            monkeypatch.setattr(stacks, "BLOCK", block)
            job = Quantize({table.path: format}, {table.path: whole[0]}, "nearest", source)
            results += [packed for _, packed in in_process(source, job, [table])]
        assert results[0] == results[1]


def test_only_a_plain_matrix_comes_in_rows(tmp_path: Path) -> None:
    """One that the class transposes, joins or decodes is whole."""
    source = open_source(write_model("gpt2", tmp_path / "gpt2"))
    assert {unit.role for unit in source.units if unit.path in source.stacks} == {"embedding", "position"}
    folder = write_model("qwen3", tmp_path / "qwen3")
    write_encoded(folder, r"_proj\.weight$", fp8())
    assert not any(path.endswith("_proj") for path in open_source(folder).stacks)


@pytest.mark.parametrize("job", ["measure", "4/32", "keep"])
def test_a_large_matrix_takes_little_memory(job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, table = _large_table(tmp_path / "model", monkeypatch, 19_997)
    _check_memory(source, [table], job, tmp_path, monkeypatch)


def _many_experts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    recipe = ARCHITECTURES["qwen3_moe"]
    monkeypatch.setitem(ARCHITECTURES, "qwen3_moe", replace(recipe, config=recipe.config | {"num_experts": 128}))
    return write_model("qwen3_moe", folder)


def _peak_bytes(source: Source, job: Job[Any], units: list[Unit]) -> int:
    """The bytes that a job takes at most, of MLX and of Python with numpy."""
    for _ in in_process(source, job, units):  # compiles what it needs
        pass
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    tracemalloc.start()
    for _ in in_process(source, job, units):
        pass
    python_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return mx.get_peak_memory() - before + python_bytes
