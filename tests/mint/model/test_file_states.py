"""Files that change, disappear or cannot be read while they are in use."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.transport.messages import pack, tell_job, tell_model, unpack
from cluster.transport.worker import Worker
from mint.analysis.analyze import analyze
from mint.analysis.probes.probe import probe
from mint.analysis.probes.probe_file import probe_path
from mint.analysis.probes.prober import Probing
from mint.analysis.unit_jobs import Measure, Quantize
from mint.assembly.assemble import assemble
from mint.core.errors import MintError
from mint.core.files import partial_path
from mint.formats.format import KEEP
from mint.formats.units import Unit
from mint.model.checkpoint.shards import read_header
from mint.model.source import Source, open_source
from mint.plan.allocate import allocate
from mint.plan.recipe import Recipe
from mint.run.executor import Executor, in_process
from mint.run.job import Job, T
from tests.worlds.executors import FunctionExecutor
from tests.worlds.jobs import checksums_of

Make = Callable[..., Path]
Change = Callable[[Path], object]


def _overwrite(model: Path) -> None:
    """Another value in the middle of the weights, in place."""
    path = next(model.glob("*.safetensors"))
    header, nbytes = read_header(path)
    with path.open("r+b") as file:
        file.seek((8 + len(header) + nbytes) // 2)
        file.write(b"\x3f\x3f")


def _replace(model: Path) -> None:
    """A copy that only has another inode and time."""
    path = next(model.glob("*.safetensors"))
    shutil.copyfile(path, model / "new")
    (model / "new").replace(path)


CHANGES: dict[str, Change] = {
    "overwritten": _overwrite,
    "replaced": _replace,
    "truncated": lambda model: os.truncate(next(model.glob("*.safetensors")), 40_000),
    "deleted": lambda model: next(model.glob("*.safetensors")).unlink(),
    "config": lambda model: (model / "config.json").write_text((model / "config.json").read_text() + " "),
}


def _changing(model: Path, change: Change, after: int) -> Executor:
    """An executor whose model changes once some units are done."""

    @FunctionExecutor
    def executor(source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]:
        for count, result in enumerate(in_process(source, job, units), start=1):
            yield result
            if count == min(after, len(units)):
                change(model)

    return executor


@pytest.mark.parametrize("after", [1, 1000])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_model_that_changes_while_it_is_measured_gets_no_analysis(
    change: Change, after: int, make_model: Make, tmp_path: Path
) -> None:
    model, path = make_model(), tmp_path / "a.mint"
    shutil.copytree(model, tmp_path / "copy")
    source = open_source(model)
    with pytest.raises(
        MintError, match=r"(model\.safetensors|config\.json): (changed|disappeared) .*while it was in use"
    ):
        analyze(source, path, executor=_changing(model, change, after))
    assert not path.exists()
    for file in (tmp_path / "copy").iterdir():
        shutil.copyfile(file, model / file.name)
    analyze(open_source(model), path)
    analyze(open_source(tmp_path / "copy"), tmp_path / "undisturbed.mint")
    assert path.read_bytes() == (tmp_path / "undisturbed.mint").read_bytes()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_model_that_changes_while_it_is_packed_makes_no_output(
    change: Change, make_model: Make, tmp_path: Path
) -> None:
    model = make_model()
    source = open_source(model)
    plan = allocate(analyze(source, tmp_path / "a.mint"), 300_000, Recipe(veto_db=-100.0))
    with pytest.raises(MintError, match="while it was in use"):
        assemble(plan, source, tmp_path / "out", executor=_changing(model, change, 1000))
    assert not (tmp_path / "out").exists()
    assert partial_path(tmp_path / "out").exists()


def test_a_model_that_changes_while_it_is_probed_gets_no_probes(make_model: Make, tmp_path: Path) -> None:
    model = make_model(tokenizer=True)
    source = open_source(model)
    path = tmp_path / "a.mint"
    analysis = analyze(source, path)
    probing = Probing("random", 2, 8, base="full")
    with pytest.raises(MintError, match="while it was in use"):
        probe(source, analysis, probe_path(path), probing=probing, executor=_changing(model, _overwrite, 3))
    assert not probe_path(path).exists()


def test_a_worker_of_a_cluster_checks_its_own_copy(
    make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    source = open_source(model)
    monkeypatch.setenv("MINT_MODELS", str(model.parent))
    worker = Worker("node", 1 << 33)
    worker.hello(str(model))
    worker.open(1, pack(tell_model(source, {})), pack(tell_job(Measure())), {})
    paths = [unit.path for unit in source.units]
    before = [entry for message in worker.run(1, 0, paths[:3]) for entry in unpack(message)]
    assert [reason for _, reason, _, _ in before if reason] == []
    _overwrite(model)
    after = [entry for message in worker.run(1, 1, paths[3:6]) for entry in unpack(message)]
    assert len(after) == 3
    assert all("changed while it was in use" in reason for _, reason, _, _ in after)


def test_a_weight_that_was_not_measured_is_not_packed(make_model: Make) -> None:
    """The identity of a model samples its bytes; the checksum of a unit counts all."""
    model = make_model()
    checksums = checksums_of(open_source(model))
    _overwrite(model)
    source = open_source(model)
    job = Quantize(dict.fromkeys(checksums, KEEP), checksums)
    with pytest.raises(MintError, match=r"unit .*: its weight is not the one that was measured \(found checksum"):
        list(in_process(source, job, source.units))


def test_a_norm_that_was_not_measured_is_not_written(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    plan = allocate(analyze(source, tmp_path / "a.mint"), "6bpw", Recipe(veto_db=-100.0))
    norm = next(name for name in plan.parameter_checksums if "norm" in name)
    other = replace(plan, parameter_checksums={**plan.parameter_checksums, norm: "0" * 16})
    assert other.digest != plan.digest
    with pytest.raises(MintError, match=f"parameter {norm} is not the one that was measured"):
        assemble(other, source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
