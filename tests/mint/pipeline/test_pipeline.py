"""The whole way, for every architecture: open, analyze, allocate, assemble, verify, load, compute."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import load
from mlx_lm.utils import load_model

from mint.analysis.analyze import analyze
from mint.assembly.assemble import assemble
from mint.assembly.verify import verify
from mint.core.errors import MintError
from mint.core.files import partial_path
from mint.formats.format import KEEP
from mint.formats.rounding import ROUNDINGS
from mint.formats.units import Unit
from mint.model.checkpoint.manifest import read_manifest
from mint.model.checkpoint.reader import all_finite
from mint.model.source import Source, open_source
from mint.pipeline import quantize
from mint.plan.allocate import allocate
from mint.plan.plan import Plan, read_plan
from mint.plan.recipe import Recipe
from mint.plan.size_range import possible_bytes
from mint.run.executor import Executor, in_process
from mint.run.job import Job, T
from tests.conftest import FULL_PRECISION
from tests.worlds.executors import FunctionExecutor

Make = Callable[..., Path]
ANY_SQNR = -100.0


def _plan(source: Source, folder: Path, share: float) -> Plan:
    analysis = analyze(source, folder / "a.mint")
    smallest, largest = possible_bytes(source.units, source.parameters)
    return allocate(analysis, int(smallest + (largest - smallest) * share), Recipe(veto_db=ANY_SQNR))


def _bytes_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize("name", FULL_PRECISION)
def test_three_budgets_of_every_architecture_fit_load_and_compute(name: str, make_model: Make, tmp_path: Path) -> None:
    source = open_source(make_model(name, shards=3))
    for share in (0.02, 0.2, 0.6):
        plan = _plan(source, tmp_path, share)
        output = tmp_path / f"out-{share}"
        manifest = assemble(plan, source, output)
        assert _bytes_on_disk(output) == plan.planned_bytes == manifest.weight_bytes <= plan.budget_bytes
        model, _ = load_model(output)
        model.set_dtype(mx.float32)  # on a CPU, MLX multiplies gathered matrices in float32 only
        logits = model(mx.array([[1, 2, 3, 4, 5]]))
        assert bool(mx.isfinite(logits).all())
        verification = verify(output, source)
        assert verification.passed, [check for check in verification.checks if not check.passed]


def test_the_weights_are_what_mlx_would_have_stored(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    plan = _plan(source, tmp_path, 0.3)
    assemble(plan, source, tmp_path / "out")
    stored = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert isinstance(stored, dict)
    arrays = source.arrays()
    for choice in plan.choices:
        weight = arrays[f"{choice.path}.weight"]
        expected = (weight,) if choice.format == KEEP else mx.quantize(weight, **choice.format.parameters())
        for tensor, array in zip(choice.tensors, expected, strict=True):
            assert mx.array_equal(stored[tensor.name], array), tensor.name


def test_every_module_has_its_entry_in_the_config(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    plan = _plan(source, tmp_path, 0.6)
    assemble(plan, source, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    entries = config["quantization"]
    assert {choice.path for choice in plan.choices} == {path for path in entries if "." in path or path == "lm_head"}
    assert entries == config["quantization_config"]
    assert {type(entries[choice.path]) for choice in plan.choices if choice.format == KEEP} <= {bool}


def test_shards_stay_below_their_limit_and_the_index_names_every_tensor(make_model: Make, tmp_path: Path) -> None:
    source = open_source(make_model("qwen3_moe"))
    analysis = analyze(source, tmp_path / "a.mint")
    limit = 150_000
    plan = allocate(analysis, 700_000, Recipe(veto_db=ANY_SQNR, max_shard_size=f"{limit}B"))
    assemble(plan, source, tmp_path / "out")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert _bytes_on_disk(tmp_path / "out") == plan.planned_bytes <= 700_000
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {tensor.name for group in plan.groups() for tensor in group}
    assert set(index["weight_map"].values()) == {file.name for file in files}
    load_model(tmp_path / "out")


def test_tokenizer_and_chat_template_come_along(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    assemble(_plan(source, tmp_path, 0.3), source, tmp_path / "out")
    _, tokenizer = load(str(tmp_path / "out"))
    _, original = load(str(llama))
    text = "hello world"
    assert tokenizer.encode(text) == original.encode(text)
    assert tokenizer.chat_template == original.chat_template


def test_an_existing_output_is_refused_and_left_alone(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("mine")
    with pytest.raises(MintError, match="exists; nothing is ever overwritten"):
        assemble(_plan(source, tmp_path, 0.3), source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["diary.txt"]


def test_a_plan_of_another_model_is_refused(llama: Path, make_model: Make, tmp_path: Path) -> None:
    plan = _plan(open_source(llama), tmp_path, 0.3)
    with pytest.raises(MintError, match="plan is for another model"):
        assemble(plan, open_source(make_model("llama", seed=5)), tmp_path / "out")


def _folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _dying_after(count: int) -> Executor:
    @FunctionExecutor
    def executor(source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]:
        for index, result in enumerate(in_process(source, job, units)):
            if index == count:
                raise KeyboardInterrupt
            yield result

    return executor


def test_interrupted_assembly_resumes_to_the_same_folder(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    plan = _plan(source, tmp_path, 0.3)
    assemble(plan, source, tmp_path / "whole")
    output = tmp_path / "out"
    requests: list[int] = []
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            assemble(plan, source, output, executor=_dying_after(4))
        assert not output.exists()

    @FunctionExecutor
    def counting(source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]:
        requests.append(len(units))
        yield from in_process(source, job, units)

    assemble(plan, source, output, executor=counting)
    assert requests == [len(source.units) - 12]
    assert _folder_bytes(output) == _folder_bytes(tmp_path / "whole")
    assert not partial_path(output).exists()


def test_bytes_that_a_power_cut_lost_are_written_again(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    plan = _plan(source, tmp_path, 0.3)
    assemble(plan, source, tmp_path / "whole")
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        assemble(plan, source, output, executor=_dying_after(4))
    shard = plan.layout[0]
    with (partial_path(output) / shard.name).open("r+b") as file:
        file.seek(shard.tensors[0].offset)
        file.write(b"\0" * 64)
    assemble(plan, source, output)
    assert _folder_bytes(output) == _folder_bytes(tmp_path / "whole")


def test_every_file_is_on_the_disk_as_it_is_before_the_folder_gets_its_name(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(llama)
    flushed: dict[int, int] = {}
    rename = Path.rename

    def note(descriptor: int) -> None:
        status = os.fstat(descriptor)
        flushed[status.st_ino] = status.st_mtime_ns

    def look(partial: Path, output: Path) -> Path:
        files = {path.name: path.stat() for path in partial.iterdir()}
        assert [name for name, file in files.items() if flushed.get(file.st_ino) != file.st_mtime_ns] == []
        return rename(partial, output)

    plan = _plan(source, tmp_path, 0.3)
    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "rename", look)
    assemble(plan, source, tmp_path / "out")
    assert flushed[(tmp_path / "out" / "config.json").stat().st_ino]


def test_a_partial_folder_of_another_plan_is_refused(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    with pytest.raises(KeyboardInterrupt):
        assemble(_plan(source, tmp_path, 0.3), source, tmp_path / "out", executor=_dying_after(2))
    with pytest.raises(MintError, match="begun for something else"):
        assemble(_plan(source, tmp_path, 0.5), source, tmp_path / "out")


def _corrupt(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


@pytest.fixture
def written(llama: Path, tmp_path: Path) -> Path:
    source = open_source(llama)
    assemble(_plan(source, tmp_path, 0.3), source, tmp_path / "out")
    return tmp_path / "out"


def _failed(folder: Path, source: Source | None = None) -> dict[str, str]:
    return {check.name: check.detail for check in verify(folder, source).checks if not check.passed}


def test_a_flipped_byte_in_the_weights_is_found(written: Path) -> None:
    path = written / "model.safetensors"
    _corrupt(path, path.stat().st_size - 5000)
    assert "SHA-256" in _failed(written)["files"]


def test_wrong_codes_under_a_right_digest_are_found_by_measuring_again(written: Path, llama: Path) -> None:
    """Even with the manifest forged, the measured errors tell that these are not the planned weights."""
    path = written / "model.safetensors"
    plan = json.loads((written / "mint-plan.json").read_text())
    unit = next(unit for unit in plan["units"] if unit["role"] == "up")
    header = path.read_bytes()
    length = int.from_bytes(header[:8], "little")
    entry = json.loads(header[8 : 8 + length])[f"{unit['path']}.weight"]
    for offset in range(0, 400, 4):
        _corrupt(path, 8 + length + entry["data_offsets"][0] + offset)
    assert unit["path"] in _failed(written, open_source(llama))["errors"]


def test_a_config_that_tells_another_format_is_found(written: Path) -> None:
    path = written / "config.json"
    config = json.loads(path.read_text())
    unit = next(name for name, entry in config["quantization"].items() if isinstance(entry, dict))
    config["quantization"][unit]["group_size"] = 96
    path.write_text(json.dumps(config))
    assert unit in _failed(written)["config"]
    assert "loads" in _failed(written)


def test_a_missing_file_is_found(written: Path) -> None:
    (written / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in _failed(written)["files"]


def test_a_nan_among_the_scales_is_found(written: Path) -> None:
    path = written / "model.safetensors"
    text = bytearray(path.read_bytes())
    length = int.from_bytes(text[:8], "little")
    header = json.loads(text[8 : 8 + length])
    name = next(name for name, entry in header.items() if name.endswith("scales") and entry["dtype"] == "BF16")
    position = 8 + length + header[name]["data_offsets"][0]
    text[position : position + 2] = b"\xc0\x7f"
    path.write_bytes(text)
    assert name in _failed(written)["finite"]


@pytest.mark.parametrize(
    ("dtype", "bad", "good"),
    [
        ("BF16", (0x7F80, 0xFF80, 0x7FC0, 0x7F81), (0x7F7F, 0xFF7F, 0x0001, 0x8000)),
        ("F16", (0x7C00, 0xFC00, 0x7E00, 0x7C01), (0x7BFF, 0xFBFF, 0x0001, 0x8000)),
        ("F32", (0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001), (0x7F7FFFFF, 0xFF7FFFFF, 1, 1 << 31)),
    ],
)
def test_nan_and_infinity_differ_from_the_greatest_and_the_least(
    dtype: str, bad: tuple[int, ...], good: tuple[int, ...]
) -> None:
    word, kind = (np.uint32, np.float32) if dtype == "F32" else (np.uint16, np.uint16)
    assert all_finite(np.array(good, word).view(kind), dtype)
    for value in bad:
        assert not all_finite(np.array((*good, value), word).view(kind), dtype)


def test_a_folder_that_mint_did_not_write_is_refused(llama: Path) -> None:
    with pytest.raises(MintError, match=r"no mint\.json found"):
        verify(llama)


def test_quantize_does_it_all_and_the_second_budget_measures_nothing(llama: Path, tmp_path: Path) -> None:
    largest = possible_bytes(open_source(llama).units, open_source(llama).parameters)[1]
    first = quantize(llama, largest // 2, tmp_path / "a")
    before = first.analysis.stat().st_mtime_ns
    second = quantize(llama, largest // 3, tmp_path / "b")
    assert second.analysis == first.analysis
    assert second.analysis.stat().st_mtime_ns == before
    for result in (first, second):
        assert result.verification.passed
        assert result.manifest.weight_bytes == _bytes_on_disk(result.output) <= result.plan.budget_bytes
        assert set(result.seconds) == {"analyze", "allocate", "assemble", "verify"}
        assert result.peak_rss_bytes > 0


def test_the_same_model_and_budget_give_the_same_folder(llama: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        quantize(llama, 200_000, tmp_path / name, Recipe(veto_db=0.0), analysis=tmp_path / f"{name}.mint")
    assert _folder_bytes(tmp_path / "a") == _folder_bytes(tmp_path / "b")
    assert read_manifest(tmp_path / "a") == read_manifest(tmp_path / "b")


def test_float32_and_float16_models_work_too(make_model: Make, tmp_path: Path) -> None:
    for dtype in ("F32", "F16"):
        folder = make_model("llama", dtype, dtype=dtype)
        largest = possible_bytes(open_source(folder).units, open_source(folder).parameters)[1]
        result = quantize(folder, largest // 2, tmp_path / f"out-{dtype}")
        assert verify(result.output, open_source(folder)).passed


def test_unquantized_logits_are_close_to_the_quantized_ones_at_8_bits(llama: Path, tmp_path: Path) -> None:
    """A model that keeps half of its bytes still computes nearly what it computed."""
    largest = possible_bytes(open_source(llama).units, open_source(llama).parameters)[1]
    result = quantize(llama, int(largest * 0.58), tmp_path / "out")
    logits = []
    for folder in (llama, result.output):
        model, _ = load_model(folder)
        model.set_dtype(mx.float32)
        logits.append(np.asarray(model(mx.array([[1, 2, 3, 4, 5]]))))
    assert np.linalg.norm(logits[0] - logits[1]) / np.linalg.norm(logits[0]) < 0.1


def test_a_searched_model_is_as_planned_and_loses_less_at_the_same_budget(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    smallest, largest = possible_bytes(source.units, source.parameters)
    plans = {}
    for rounding in ROUNDINGS:
        analysis = analyze(source, tmp_path / f"{rounding}.mint", rounding=rounding)
        assert analysis.rounding == rounding
        plans[rounding] = allocate(analysis, (smallest + largest) // 3, Recipe(veto_db=ANY_SQNR))
    assert plans["search"].loss < 0.95 * plans["nearest"].loss
    output = tmp_path / "out"
    assemble(plans["search"], source, output)
    verification = verify(output, source)
    assert verification.passed, [check for check in verification.checks if not check.passed]
    assert read_plan(output).rounding == "search"


def test_an_analysis_is_not_resumed_with_another_rounding(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    path = tmp_path / "a.mint"
    with pytest.raises(KeyboardInterrupt):
        analyze(source, path, executor=_dying_after(2))
    with pytest.raises(MintError, match="rounding: found nearest, needed search"):
        analyze(source, path, rounding="search")
    analyze(source, path)
    with pytest.raises(MintError, match="holds an analysis for rounding nearest, needed one for search"):
        analyze(source, path, rounding="search")
    with pytest.raises(MintError, match="'best' is not a rounding; needed one of: nearest, search"):
        analyze(source, tmp_path / "b.mint", rounding="best")


def test_units_of_another_rounding_are_not_reused(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    largest = possible_bytes(source.units, source.parameters)[1]
    quantize(llama, largest // 2, tmp_path / "nearest")
    result = quantize(llama, largest // 2, tmp_path / "search", Recipe(rounding="search"), reuse=[tmp_path / "nearest"])
    assert result.reused_bytes == 0
    assert verify(result.output, source).passed
    again = quantize(llama, largest // 2, tmp_path / "again", Recipe(rounding="search"), reuse=[tmp_path / "search"])
    assert again.reused_bytes > 0
    assert again.plan.digest == result.plan.digest
