from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mint.analysis.analysis import read_analysis
from mint.analysis.analyze import analyze
from mint.core.errors import MintError
from mint.core.files import partial_path
from mint.formats.format import KEEP
from mint.formats.units import Unit
from mint.model.hooks import hook
from mint.model.source import Source, open_source
from mint.run.executor import Executor, in_process
from mint.run.job import Job, T
from tests.worlds.executors import FunctionExecutor

Make = Callable[..., Path]


@FunctionExecutor
def backwards(source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]:
    """An executor whose results come in another order."""
    yield from in_process(source, job, list(units)[::-1])


class KilledError(Exception):
    """Stands for the end of the process."""


def dying_after(count: int) -> Executor:
    @FunctionExecutor
    def executor(source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]:
        for index, result in enumerate(in_process(source, job, units)):
            if index == count:
                raise KilledError
            yield result

    return executor


def test_every_admissible_format_of_every_unit_is_measured(llama: Path, tmp_path: Path) -> None:
    analysis = analyze(open_source(llama), tmp_path / "a.mint")
    for unit in analysis.units:
        measurement = analysis.measurements[unit.path]
        assert (*measurement.formats, KEEP) == unit.formats
        assert all(0 < error < 1 for error in measurement.errors)


def test_more_bits_hurt_less(llama: Path, tmp_path: Path) -> None:
    analysis = analyze(open_source(llama), tmp_path / "a.mint")
    for measurement in analysis.measurements.values():
        for group_size in (32, 64, 128):
            errors = [e for f, e in zip(measurement.formats, measurement.errors, strict=True)
                      if f.mode == "affine" and f.group_size == group_size]  # fmt: skip
            assert errors == sorted(errors, reverse=True)


def test_the_order_of_work_does_not_change_the_file(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    analyze(source, tmp_path / "a.mint")
    analyze(source, tmp_path / "b.mint", executor=backwards)
    assert (tmp_path / "a.mint").read_bytes() == (tmp_path / "b.mint").read_bytes()


def test_killed_after_any_unit_it_resumes_and_writes_the_same_file(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    analyze(source, tmp_path / "whole.mint")
    path = tmp_path / "a.mint"
    for _ in range(len(source.units) // 3):
        with pytest.raises(KilledError):
            analyze(source, path, executor=dying_after(3))
        assert not path.exists()
    analyze(source, path)
    assert path.read_bytes() == (tmp_path / "whole.mint").read_bytes()
    assert not partial_path(path).exists()


def test_no_unit_is_measured_again(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    with pytest.raises(KilledError):
        analyze(source, tmp_path / "a.mint", executor=dying_after(5))
    paths: list[str] = []

    @FunctionExecutor
    def recording(source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]:
        paths.extend(unit.path for unit in units)
        yield from in_process(source, job, units)

    analyze(source, tmp_path / "a.mint", executor=recording)
    assert paths == [unit.path for unit in source.units[5:]]
    paths.clear()
    analyze(source, tmp_path / "a.mint", executor=recording)
    assert paths == []


def test_the_returned_analysis_is_that_of_its_file(make_model: Make, tmp_path: Path) -> None:
    source = open_source(make_model("mixtral"))
    analysis = analyze(source, tmp_path / "a.mint")
    assert read_analysis(tmp_path / "a.mint") == analysis
    assert analyze(source, tmp_path / "a.mint") == analysis


def test_a_finished_analysis_is_read_before_anything_is_traced(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    passes = 0

    def count(method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        nonlocal passes
        passes += 1
        return method(*arguments, **options)

    hook(source.opened.model, count, ("__call__",))
    analysis = analyze(source, tmp_path / "a.mint")
    first = passes
    assert first > 0
    assert analyze(source, tmp_path / "a.mint") == analysis
    assert passes == first


def test_a_stack_keeps_a_number_per_expert_and_the_worst(make_model: Make, tmp_path: Path) -> None:
    analysis = analyze(open_source(make_model("mixtral")), tmp_path / "a.mint")
    stacks = [unit for unit in analysis.units if unit.slices > 1]
    assert stacks
    for unit in stacks:
        measurement = analysis.measurements[unit.path]
        by_slice = np.frombuffer(measurement.slice_errors, "<f4").reshape(unit.slices, -1)
        assert by_slice.shape == (unit.slices, len(measurement.formats))
        assert by_slice.max(axis=0) == pytest.approx(measurement.worst_errors, rel=1e-6)
        assert (by_slice.min(axis=0) <= measurement.errors).all()


def _poison(folder: Path) -> str:
    source = open_source(folder)
    unit = next(unit for unit in source.units if unit.role == "up")
    tensor = source.tensors()[unit.sources[0]]
    with (folder / tensor.shard).open("r+b") as file:
        file.seek(tensor.offset + 10)
        file.write(b"\xc0\x7f")  # a bf16 NaN
    return unit.path


def test_nan_weights_are_named_and_stop_the_analysis(make_model: Make, tmp_path: Path) -> None:
    folder = make_model("llama")
    path = _poison(folder)
    with pytest.raises(MintError, match=rf"unit {path}: 1 of its weights are NaN or infinite.*keep_nonfinite"):
        analyze(open_source(folder), tmp_path / "a.mint")
    assert not (tmp_path / "a.mint").exists()


def test_nan_weights_are_kept_when_the_user_says_so(make_model: Make, tmp_path: Path) -> None:
    folder = make_model("llama")
    path = _poison(folder)
    analysis = analyze(open_source(folder), tmp_path / "a.mint", keep_nonfinite=True)
    assert analysis.measurements[path].nonfinite == 1


def test_an_analysis_of_another_model_is_not_overwritten(llama: Path, make_model: Make, tmp_path: Path) -> None:
    analyze(open_source(llama), tmp_path / "a.mint")
    before = (tmp_path / "a.mint").read_bytes()
    with pytest.raises(MintError, match="analysis of another model"):
        analyze(open_source(make_model("llama", seed=7)), tmp_path / "a.mint")
    assert (tmp_path / "a.mint").read_bytes() == before


def test_damage_anywhere_in_a_finished_file_is_found(llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.mint"
    analyze(open_source(llama), path)
    whole = path.read_bytes()
    for position in [*range(0, len(whole), max(1, len(whole) // 60)), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[position] ^= 0x01
        path.write_bytes(damaged)
        with pytest.raises(MintError, match=r"not a mint analysis|of schema|damaged"):
            read_analysis(path)
        path.write_bytes(whole[:position])
        with pytest.raises(MintError, match=r"not a mint analysis|of schema|damaged"):
            read_analysis(path)
    path.write_bytes(whole)
    assert read_analysis(path).digest


def test_a_missing_analysis_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(MintError, match="no such analysis; make one with: mint analyze"):
        read_analysis(tmp_path / "nowhere.mint")


def test_memory_is_given_back_unit_by_unit(make_model: Make) -> None:
    """The unit at work, the next one and their sources are all that is in memory at any time."""
    source = open_source(make_model("qwen3_moe", shards=2))
    largest = max(unit.nbytes for unit in source.units)
    before = mx.get_active_memory()
    peak = 0

    def watch(unit: Unit, weight: mx.array) -> int:
        return mx.get_active_memory() - before

    for _, nbytes in in_process(source, watch, source.units):
        peak = max(peak, nbytes)
    assert peak <= 4 * largest
    assert mx.get_active_memory() - before < largest
