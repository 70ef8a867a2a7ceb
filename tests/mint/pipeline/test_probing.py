"""A model that runs anyway is probed first: the default sensitivities come from another model."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mint.analysis.analysis import read_analysis
from mint.analysis.analyze import analyze
from mint.analysis.cached import cached_analysis, probes_of
from mint.analysis.probes.packed_base import AUTO, BASES, fitting_base, needed_bytes
from mint.analysis.probes.probe import probe
from mint.analysis.probes.probe_file import probe_path, read_probes
from mint.analysis.probes.prober import BRIEF, Probing
from mint.analysis.probes.sensitivity import PRIOR, PROBED
from mint.cli.main import run_command
from mint.core.errors import MintError
from mint.core.files import partial_path
from mint.core.memory import PROCESSES_BYTES
from mint.core.progress import Progress
from mint.formats.units import Unit
from mint.model.source import Source, open_source
from mint.pipeline import Pipeline, Quantized, Target, quantize
from mint.plan.recipe import Budget, Recipe
from mint.run.executor import in_process
from mint.run.job import Job
from tests.worlds.executors import FunctionExecutor

GOOD = Recipe(rounding="compensate")
TOO_MANY = Probing(sequences=10**8)  # no machine has the memory for their activations


def sources_of(result: Quantized) -> set[str]:
    return {choice.alpha_from for choice in result.plan.choices}


def test_a_model_that_runs_anyway_is_probed_first_and_once(llama: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    first = quantize(llama, "6bpw", tmp_path / "one", GOOD, on_progress=seen.append)
    assert sources_of(first) == {PROBED}
    assert "probe" in {progress.stage for progress in seen}
    seen.clear()
    assert sources_of(quantize(llama, "5bpw", tmp_path / "two", GOOD, on_progress=seen.append)) == {PROBED}
    assert "probe" not in {progress.stage for progress in seen}


@pytest.mark.parametrize(
    "recipe", [Recipe(rounding="nearest"), Recipe(rounding="search"), Recipe(rounding="compensate", ignore_probe=True)]
)
def test_nothing_is_probed_where_no_model_runs_or_nobody_wants_it(recipe: Recipe, llama: Path, tmp_path: Path) -> None:
    assert sources_of(quantize(llama, "6bpw", tmp_path / "out", recipe)) == {PRIOR}


def test_a_model_that_does_not_fit_in_memory_is_quantized_without_probes(llama: Path, tmp_path: Path) -> None:
    result = quantize(llama, "6bpw", tmp_path / "out", GOOD, probing=TOO_MANY)
    assert sources_of(result) == {PRIOR}
    assert result.verification.passed


def test_whoever_asks_for_probes_hears_that_they_do_not_fit(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(MintError, match="probing takes about"):
        quantize(llama, "6bpw", tmp_path / "out", Recipe(rounding="compensate", probe=True), probing=TOO_MANY)


def test_a_limit_of_memory_chooses_the_base(make_model: Callable[..., Path], tmp_path: Path) -> None:
    source = open_source(make_model("llama"))
    tokens = Probing().tokens
    needs = {base: needed_bytes(source, base, tokens) for base in BASES}
    assert fitting_base(source, AUTO, tokens, needs["6"]) == "6"
    assert fitting_base(source, AUTO, tokens, min(needs.values()) - 1) == ""
    assert fitting_base(source, "8", tokens, 1) == "8"  # as it was asked for
    target = [Target(tmp_path / "out", Budget.of("6bpw"))]
    large = Probing(sequences=2000)
    memory = PROCESSES_BYTES + needed_bytes(source, "4", large.tokens) - 1
    little, enough = (
        Pipeline(GOOD, probing=large, memory=nbytes, may_probe=True).foresee(source, target)
        for nbytes in (memory, memory + 1)
    )
    assert "probe" not in [step.name for step in little.steps]
    assert "probe" in [step.name for step in enough.steps]
    assert enough.peak_bytes <= memory + 1


def test_probes_serve_the_cached_analyses_of_all_roundings(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize(llama, "6bpw", tmp_path / "good", GOOD)
    quantize(llama, "6bpw", tmp_path / "fast", Recipe(rounding="nearest"))
    path = cached_analysis(open_source(llama), "nearest")
    assert probes_of(read_analysis(path), path) == read_probes(probe_path(cached_analysis(open_source(llama))))
    elsewhere = shutil.copyfile(path, tmp_path / "a.mint")
    assert probes_of(read_analysis(elsewhere), elsewhere) is None
    assert run_command(["curve", str(path), "--json"]) == 0
    assert "from probes" in json.loads(capsys.readouterr().out)["predicted_from"]


def test_who_lacks_weights_does_not_probe_unasked(
    llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    apart = FunctionExecutor(in_process, model_memory=0)
    result = quantize(llama, "6bpw", tmp_path / "out", GOOD, executor=apart)
    assert sources_of(result) == {PRIOR}
    assert "no machine has all weights" in caplog.text + "".join(capsys.readouterr())


def begin(llama: Path, folder: Path, probing: Probing) -> None:
    """Begin probes of the model, and end as if killed after the first unit."""
    source = open_source(llama)
    path = cached_analysis(source)
    path.parent.mkdir(parents=True, exist_ok=True)

    @FunctionExecutor
    def killed(source: Source, job: Job[Any], units: Sequence[Unit]) -> Iterator[tuple[Unit, Any]]:
        for number, pair in enumerate(in_process(source, job, units)):
            if number:
                raise KeyboardInterrupt
            yield pair

    analysis = analyze(source, folder / "a.mint")
    with pytest.raises(KeyboardInterrupt):
        probe(source, analysis, probe_path(path), probing=probing, executor=killed)
    assert partial_path(probe_path(path)).exists()


def test_a_begun_brief_probe_never_stands_in_the_way_of_another(llama: Path, tmp_path: Path) -> None:
    begin(llama, tmp_path, replace(BRIEF, base="8"))
    assert sources_of(quantize(llama, "6bpw", tmp_path / "out", GOOD)) == {PROBED}
    begin(llama, tmp_path, replace(BRIEF, base="4"))
    probed = Recipe(rounding="compensate", probe=True)
    assert sources_of(quantize(llama, "5bpw", tmp_path / "asked", probed)) == {PROBED}


def test_a_probe_that_somebody_began_is_left_alone(llama: Path, tmp_path: Path) -> None:
    begin(llama, tmp_path, Probing(sequences=3))
    assert sources_of(quantize(llama, "6bpw", tmp_path / "out", GOOD)) == {PRIOR}
    (begun,) = cached_analysis(open_source(llama)).parent.glob("*.probe.partial")
    assert begun.stat().st_size


def test_brief_probes_are_replaced_by_those_that_somebody_asks_for(llama: Path, tmp_path: Path) -> None:
    file, notes = tmp_path / "a.mint", list[str]()
    source, analysis = open_source(llama), analyze(open_source(llama), file)
    brief = probe(source, analysis, probe_path(file), probing=BRIEF)
    whole = probe(source, analysis, probe_path(file), on_note=notes.append)
    assert (brief.tokens, whole.tokens) == (str(BRIEF), str(Probing()))
    assert any("replaced" in note for note in notes)
    assert read_probes(probe_path(file)).tokens == str(Probing())
    with pytest.raises(MintError, match="holds other probes"):
        probe(source, analysis, probe_path(file), probing=BRIEF)
