"""The end of a run is no surprise: what is wrong is said early, what is finished is verified, a kill costs nothing."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mint.analysis.analyze import analyze
from mint.assembly.assemble import assemble, drafted
from mint.assembly.draft import JOURNAL_NAME, naming_full_disk
from mint.cli.main import run_command
from mint.core.errors import DiskFullError, MintError, fixable
from mint.core.files import partial_path
from mint.formats.format import KEEP
from mint.formats.units import Unit
from mint.model.checkpoint.shards import INDEX_NAME
from mint.model.source import Source, open_source
from mint.pipeline import Pipeline, Quantized, Target, quantize
from mint.plan.allocate import allocate
from mint.plan.plan import Plan
from mint.plan.recipe import Budget, Recipe
from mint.quality.sequences import TextSize
from mint.run.executor import in_process
from mint.run.job import Job, T
from tests.worlds.executors import FunctionExecutor

Make = Callable[..., Path]
RECIPE = Recipe(veto_db=-100.0)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _run(model: Path, outputs: dict[str, Path], notes: list[str] | None = None) -> list[Quantized]:
    pipeline = Pipeline(RECIPE, on_note=(notes if notes is not None else []).append)
    return pipeline.run(model, [Target(output, Budget.of(budget)) for budget, output in outputs.items()])


def _plan(source: Source, folder: Path, rounding: str = "nearest") -> Plan:
    analysis = analyze(source, folder / f"{rounding}.mint", rounding=rounding)
    return allocate(analysis, 300_000, replace(RECIPE, rounding=rounding))


# finished and killed


def test_killed_in_the_second_of_two_budgets_the_same_command_verifies_the_first_and_goes_on(
    llama: Path, tmp_path: Path
) -> None:
    _run(llama, {"8bpw": tmp_path / "a", "6bpw": tmp_path / "b"})
    before = _bytes(tmp_path / "b")
    shutil.move(tmp_path / "b", partial_path(tmp_path / "b"))
    (partial_path(tmp_path / "b") / "mint.json").unlink()
    (tmp_path / "a" / JOURNAL_NAME).touch()
    notes: list[str] = []
    first, second = _run(llama, {"8bpw": tmp_path / "a", "6bpw": tmp_path / "b"}, notes)
    assert first.verification.passed
    assert second.verification.passed
    assert notes == [f"{tmp_path / 'a'} is the finished model of this plan: it is verified, not written again"]
    assert _bytes(tmp_path / "b") == before
    assert not (tmp_path / "a" / JOURNAL_NAME).exists()


@pytest.mark.parametrize("digest", ["plan", "model", "device", "versions"])
def test_an_output_of_another_plan_model_device_or_version_is_refused(digest: str, llama: Path, tmp_path: Path) -> None:
    _run(llama, {"8bpw": tmp_path / "a"})
    path = tmp_path / "a" / "mint.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {digest: {} if digest == "versions" else "other"}))
    with pytest.raises(MintError, match=rf"exists; nothing is ever overwritten \(it is of another {digest}\)"):
        _run(llama, {"8bpw": tmp_path / "a"})


def test_a_finished_output_that_was_damaged_fails_its_verification(llama: Path, tmp_path: Path) -> None:
    _run(llama, {"8bpw": tmp_path / "a"})
    (tmp_path / "a" / "tokenizer.json").unlink()
    with pytest.raises(MintError, match=r"fails its verification \(files: tokenizer\.json is missing"):
        _run(llama, {"8bpw": tmp_path / "a"})


def test_a_model_that_fails_its_verification_keeps_its_unfinished_name(llama: Path, tmp_path: Path) -> None:
    @FunctionExecutor
    def spoiling(source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]:
        for unit, result in in_process(source, job, units):
            packed: Any = result
            if getattr(packed, "format", KEEP) != KEEP:
                scales = b"\xc0\x7f" * (packed.tensors[1].nbytes // 2)  # bf16 NaN
                packed = replace(packed, data=(packed.data[0], scales, *packed.data[2:]))
            yield unit, packed

    with pytest.raises(MintError, match=r"out\.partial is whole, but fails its verification.*remove it to begin again"):
        quantize(llama, "6bpw", tmp_path / "out", RECIPE, executor=spoiling)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial" / "mint.json").exists()


def test_killed_while_the_index_was_written_a_compensated_model_resumes(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    plan, text = _plan(source, tmp_path, "compensate"), TextSize(2, 16)
    assemble(plan, source, tmp_path / "whole", text=text)

    @FunctionExecutor
    def dying(source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]:
        for unit, result in in_process(source, job, units):
            if unit.layer == 1:
                raise KeyboardInterrupt
            yield unit, result

    with pytest.raises(KeyboardInterrupt):
        assemble(plan, source, tmp_path / "out", text=text, executor=dying)
    (tmp_path / "out.partial" / INDEX_NAME).write_text('{"metadata": {')
    notes: list[str] = []
    assemble(plan, source, tmp_path / "out", text=text, on_note=notes.append)
    assert notes[0].startswith("resumes: ")
    assert _bytes(tmp_path / "out") == _bytes(tmp_path / "whole")


def test_a_journal_beside_its_finished_file_is_removed(llama: Path, tmp_path: Path) -> None:
    source, path = open_source(llama), tmp_path / "a.mint"
    with pytest.raises(ZeroDivisionError):
        analyze(source, path, on_progress=lambda step: 1 // (step.done == 0))  # type: ignore[arg-type]
    shutil.copyfile(partial_path(path), tmp_path / "journal")
    analyze(source, path)
    shutil.copyfile(tmp_path / "journal", partial_path(path))
    analyze(source, path)
    assert path.exists()
    assert not partial_path(path).exists()


def test_a_resumed_analysis_says_so(llama: Path, tmp_path: Path) -> None:
    source, path = open_source(llama), tmp_path / "a.mint"
    with pytest.raises(ZeroDivisionError):
        analyze(source, path, on_progress=lambda step: 1 // (step.done == 0))  # type: ignore[arg-type]
    notes: list[str] = []
    analyze(source, path, on_note=notes.append)
    assert notes == [f"resumes: 1 of {len(source.units)} units are measured in {partial_path(path)}"]


def test_temporary_files_of_a_killed_run_are_no_part_of_the_model(llama: Path, tmp_path: Path) -> None:
    templates = partial_path(tmp_path / "out") / "additional_chat_templates"
    templates.mkdir(parents=True)
    for path in (templates / "tool.jinja.7.tmp", templates.parent / "mint-verified.json.7.tmp"):
        path.write_bytes(b"half")
    _run(llama, {"6bpw": tmp_path / "out"})
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_nobody_else_takes_a_folder_until_it_has_its_name(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    plan = _plan(source, tmp_path)
    with drafted(plan, source, tmp_path / "out") as draft:
        with pytest.raises(MintError, match="another mint is writing this file"):
            assemble(plan, source, tmp_path / "out")
        draft.finish()
        assert JOURNAL_NAME not in _bytes(tmp_path / "out")


def test_an_empty_folder_that_appears_at_the_output_is_not_replaced(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    with drafted(_plan(source, tmp_path), source, tmp_path / "out") as draft:
        (tmp_path / "out").mkdir()
        with pytest.raises(MintError, match="exists; nothing is ever overwritten"):
            draft.finish()
    assert list((tmp_path / "out").iterdir()) == []


# said early


def test_a_norm_that_is_not_finite_stops_the_analysis_before_any_unit(make_model: Make, tmp_path: Path) -> None:
    model = make_model()
    source = open_source(model)
    norm = next(parameter for parameter in source.parameters if "norm" in parameter.name)
    tensor = source.tensors()[norm.sources[0]]
    with (model / tensor.shard).open("r+b") as file:
        file.seek(tensor.offset)
        file.write(b"\xc0\x7f")  # a bf16 NaN
    measured: list[Unit] = []

    @FunctionExecutor
    def counting(source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]:
        measured.extend(units)
        yield from in_process(source, job, units)

    with pytest.raises(MintError, match=f"parameter {norm.name}: some of its values are NaN or infinite"):
        analyze(open_source(model), tmp_path / "a.mint", executor=counting)
    assert measured == []


def _poison(model: Path, role: str) -> Unit:
    """Write a NaN into the first weight of a role."""
    source = open_source(model)
    unit = next(unit for unit in source.units if unit.role == role)
    tensor = source.tensors()[unit.sources[0]]
    with (model / tensor.shard).open("r+b") as file:
        file.seek(tensor.offset)
        file.write(b"\xc0\x7f")
    return unit


def test_a_weight_that_can_have_no_format_is_looked_at_too(make_model: Make, tmp_path: Path) -> None:
    model = make_model("qwen3_moe")
    source = open_source(model)
    kept = next((unit for unit in source.units if unit.formats == (KEEP,)), None)
    unit = _poison(model, kept.role if kept else "router")
    with pytest.raises(MintError, match=f"unit {unit.path}: 1 of its weights are NaN or infinite"):
        analyze(open_source(model), tmp_path / "a.mint")


def test_weights_that_are_not_finite_and_were_allowed_are_no_failure_at_the_end(
    make_model: Make, tmp_path: Path
) -> None:
    model = make_model()
    unit = _poison(model, "up")
    pipeline = Pipeline(RECIPE, keep_nonfinite=True)
    (result,) = pipeline.run(model, [Target(tmp_path / "out", Budget.of("8bpw"))])
    details = {check.name: check.detail for check in result.verification.checks}
    assert details["finite"].endswith("1 are not, as --keep-nonfinite allows")
    assert next(choice for choice in result.plan.choices if choice.path == unit.path).format == KEEP


def test_a_tokenizer_that_is_the_models_own_code_is_said_and_no_failure(make_model: Make, tmp_path: Path) -> None:
    model = make_model(tokenizer=True)
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    config = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    (model / "tokenizer.json").unlink()
    notes: list[str] = []
    (result,) = _run(model, {"8bpw": tmp_path / "out"}, notes)
    assert len(notes) == 2  # at the start and at the end
    assert all("its own code, which is not run here" in note and "--trust-remote-code" in note for note in notes)
    details = {check.name: check.detail for check in result.verification.checks}
    assert details["loads"].startswith("mlx_lm loads its weights; the tokenizer brings its own code")
    assert "logits equal" in details["logits"]
    assert not (tmp_path / "ran").exists()


# errors of disks and folders


@pytest.mark.parametrize(
    "number",
    [errno.EIO, errno.ENOENT, errno.ENOTEMPTY, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ESTALE, errno.ETIMEDOUT],
)
def test_errors_of_a_disk_or_a_folder_are_one_sentence_that_names_the_files(number: int) -> None:
    message = fixable(OSError(number, os.strerror(number), "one", None, "two"))
    assert message == f"one -> two: {os.strerror(number)}; fix that and run the same command again"
    assert "Unable to read" in fixable(RuntimeError("[read] Unable to read from file."))
    assert fixable(RuntimeError("index out of range")) == ""
    assert fixable(OSError(errno.EBADF, "Bad file descriptor")) == ""


def test_a_path_through_a_file_is_no_bug(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert run_command(["analyze", str(llama), "-o", str(tmp_path / "file" / "a.mint")]) == 1
    assert f"{tmp_path / 'file'} is a file; needed: a folder" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk without /dev/full needs mount")
def test_a_full_disk_is_named_and_not_the_file_that_was_copied(llama: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(DiskFullError, match=f"{tmp_path}: the disk has .* needed 12345"),
        naming_full_disk(tmp_path, 12345),
    ):
        shutil.copyfile(llama / "tokenizer.json", "/dev/full")
