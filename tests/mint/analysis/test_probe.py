"""Sensitivities measured without data: their values, their resuming, and their use."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mint.analysis.analysis import Analysis
from mint.analysis.analyze import analyze
from mint.analysis.probes.probe import probe, probed_units
from mint.analysis.probes.probe_file import Probe, Probed, probe_path, read_probes
from mint.analysis.probes.prober import COARSE, ProbeJob, Prober, Probing, TextJob, coarse_format
from mint.analysis.probes.replay import Replay
from mint.analysis.probes.sensitivity import PRIOR, PROBED, SCALED, alphas_from
from mint.cli.main import run_command
from mint.core.errors import MintError
from mint.model.hooks import hooked
from mint.model.passes.logits import logits_of
from mint.model.roles import layer_path
from mint.model.source import Source, open_source
from mint.plan.allocate import allocate
from mint.plan.recipe import Recipe
from mint.quality.forward import open_wide
from mint.run.executor import in_process
from tests.worlds.executors import FunctionExecutor
from tests.worlds.zoo import write_model

FEW = Probing(sequences=2, length=8)
RANDOM = Probing("random", 2, 8)
# dense, tied and not, sliding windows, latent attention with experts, states, parallel blocks
REPLAYED = ("llama", "qwen3_moe", "gemma3_text", "deepseek_v3", "mamba2", "gpt2")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(write_model("llama", tmp_path_factory.mktemp("model") / "llama", tokenizer=True))


@pytest.fixture(scope="module")
def analysis(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return analyze(source, tmp_path_factory.mktemp("analysis") / "a.mint")


@pytest.fixture(scope="module")
def probed(source: Source, analysis: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Probed:
    return probe(source, analysis, tmp_path_factory.mktemp("probe") / "a.probe", probing=FEW)


def test_a_probe_is_the_divergence_that_one_coarse_unit_makes(source: Source) -> None:
    """Against the definition: the model with one weight replaced, both outputs in float64."""
    prober = ProbeJob(TextJob(source, RANDOM, ()))
    units = [unit for unit in source.units if unit.role in ("embedding", "v", "down")][:4]
    tokens = mx.array(np.random.default_rng(0).integers(0, _vocabulary(source), (2, 8), dtype=np.int32))
    for unit, result in in_process(source, prober, units):
        format = coarse_format(unit)
        assert format
        model = open_wide(source.folder)
        expected = _log_probabilities(logits_of(model, tokens))
        module = dict(model.named_modules())[unit.path]
        weight = source.arrays()[f"{unit.path}.weight"]
        packed, scales, *biases = mx.quantize(weight, **format.parameters())
        coarse = mx.dequantize(packed, scales, biases[0], **format.parameters(), dtype=mx.float32)
        module["weight"] = coarse
        other = _log_probabilities(logits_of(model, tokens))
        kl = float((np.exp(expected) * (expected - other)).sum(axis=-1).mean())
        assert result.kl == pytest.approx(kl, rel=1e-3, abs=1e-7)
        wide = np.asarray(weight.astype(mx.float32), np.float64)
        error = ((np.asarray(coarse, np.float64) - wide) ** 2).sum() / (wide**2).sum()
        assert result.error == pytest.approx(error, rel=1e-4)


def _vocabulary(source: Source) -> int:
    return next(unit.shape[0] for unit in source.units if unit.role == "embedding")


def _log_probabilities(logits: mx.array) -> Any:
    wide = np.asarray(logits.astype(mx.float32), np.float64)
    peak = wide.max(axis=-1, keepdims=True)
    return wide - peak - np.log(np.exp(wide - peak).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("name", REPLAYED)
def test_replaying_layers_changes_no_probe(name: str, tmp_path: Path) -> None:
    """Against the same probes of units that are said to lie in no layer, which compute everything."""
    source = open_source(write_model(name, tmp_path / name, dtype="F32"))
    units = [unit for unit in source.units if unit.layer == source.layers - 1 and coarse_format(unit)]
    units += [unit for unit in source.units if unit.role == "head"]
    text = TextJob(source, RANDOM, ())
    modules = dict(text.opened().named_modules())
    first = next(layer_path(unit.path) for unit in source.units if unit.layer == 0)
    calls: list[str] = []

    def noting(method: Any, layer: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(first)
        return method(layer, *arguments, **options)

    with hooked(modules, {first: noting}):
        prober = Prober(source, text.opened(), text.written())
        calls.clear()
        replayed = {unit.path: probe for unit, probe in in_process(source, prober, units)}
        assert not calls
        flat = replace(source, units=tuple(replace(unit, layer=-1) for unit in source.units))
        prober = Prober(flat, text.opened(), text.written())
        calls.clear()
        for unit, probe in in_process(flat, prober, [unit for unit in flat.units if unit.path in replayed]):
            assert probe.kl == pytest.approx(replayed[unit.path].kl, rel=1e-3, abs=1e-6)
        assert calls


def test_layers_before_a_change_are_not_computed(source: Source) -> None:
    model = open_wide(source.folder)
    paths = sorted({layer_path(unit.path) for unit in source.units if unit.layer >= 0})
    tokens = mx.zeros((1, 4), mx.int32)
    replay = Replay(model, paths, tokens)
    with replay.recording():
        expected = logits_of(model, tokens)
    called: list[str] = []
    for path, layer in model.named_modules():
        if path in paths:
            layer.__class__ = _noting(type(layer), path, called)
    with replay.before(paths[-1]):
        again = logits_of(model, tokens)
    assert called == [paths[-1]]
    assert mx.allclose(again, expected)
    assert replay.share_before(paths[-1]) == (len(paths) - 1) / len(paths)


def _noting(kind: type, path: str, called: list[str]) -> type:
    def call(self: object, *arguments: object, **options: object) -> object:
        called.append(path)
        return kind.__call__(self, *arguments, **options)

    return type(kind.__name__, (kind,), {"__call__": call})


def test_probing_is_deterministic_and_resumes_to_the_same_bytes(
    source: Source, analysis: Analysis, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole.probe", tmp_path / "broken.probe"
    probe(source, analysis, whole, probing=FEW)

    class _StopError(Exception):
        pass

    @FunctionExecutor
    def stopping(source: Source, job: Any, units: Any) -> Iterator[Any]:
        for count, pair in enumerate(in_process(source, job, units)):
            if count == 3:
                raise _StopError
            yield pair

    with pytest.raises(_StopError):
        probe(source, analysis, broken, probing=FEW, executor=stopping)
    assert not broken.exists()
    probe(source, analysis, broken, probing=FEW)
    assert broken.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.probe", "whole.probe"]


def test_other_probes_are_not_overwritten(source: Source, analysis: Analysis, tmp_path: Path) -> None:
    path = tmp_path / "a.probe"
    first = probe(source, analysis, path, probing=replace(FEW, most=2))
    assert len(first.probes) == 2
    assert probe(source, analysis, path, probing=replace(FEW, most=2)) == first
    with pytest.raises(MintError, match="holds other probes"):
        probe(source, analysis, path, probing=RANDOM)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(MintError, match="damaged"):
        read_probes(path)
    path.write_bytes(b"something else")
    with pytest.raises(MintError, match="not a file of probes"):
        read_probes(path)


@pytest.mark.parametrize(
    "settings", [Probing("diary"), Probing(sequences=0), Probing(length=1), Probing(most=0)], ids=str
)
def test_settings_that_cannot_be_are_refused(source: Source, analysis: Analysis, settings: Probing) -> None:
    with pytest.raises(MintError, match="needed"):
        probe(source, analysis, Path("never.probe"), probing=settings)


def test_bounded_probes_take_the_largest_units(source: Source) -> None:
    every = probed_units(source.units, None)
    assert all(coarse_format(unit) in COARSE for unit in every)
    few = probed_units(source.units, 3)
    assert len(few) == 3
    assert min(unit.size for unit in few) >= max(unit.size for unit in every if unit not in few)


def test_probed_alphas_go_before_priors_and_scale_those_of_their_role(analysis: Analysis) -> None:
    priors = {unit.path: 1.0 for unit in analysis.units}
    by_role = {role: [u.path for u in analysis.units if u.role == role] for role in ("q", "v")}
    probed = {by_role["q"][0]: 2.0, by_role["q"][1]: 8.0}
    alphas = alphas_from(priors, analysis.units, probed)
    assert alphas[by_role["q"][0]].value == 2.0
    assert alphas[by_role["q"][0]].origin == PROBED
    assert alphas[by_role["q"][2]].value == pytest.approx(4.0)
    assert alphas[by_role["v"][0]].value == pytest.approx(4.0)  # no probe of its role: those of all roles
    assert alphas[by_role["v"][0]].origin == SCALED
    assert {alpha.origin for alpha in alphas_from(priors, analysis.units, {}).values()} == {PRIOR}


def test_a_unit_without_effect_on_a_probe_is_unknown_and_gets_its_prior(analysis: Analysis) -> None:
    """Short probes do not reach an index of sparse attention, nor every expert."""
    priors = {unit.path: 1.0 for unit in analysis.units}
    silent, other = (unit.path for unit in analysis.units if unit.role == "q" and unit.layer < 2)
    alphas = alphas_from(priors, analysis.units, {silent: 0.0, other: 3.0})
    assert alphas[silent].value == pytest.approx(3.0)
    assert alphas[silent].origin == SCALED


def test_a_plan_tells_where_its_alphas_come_from(analysis: Analysis, probed: Probed) -> None:
    plan = allocate(analysis, "0.4x", probed=probed)
    for choice in plan.choices:
        assert choice.alpha_from == PROBED
        assert choice.alpha == probed.probes[choice.path].alpha
    assert {choice.alpha_from for choice in allocate(analysis, "0.4x").choices} == {PRIOR}
    published = allocate(analysis, "0.4x", Recipe(objective="mint"), probed=probed)
    assert {choice.alpha for choice in published.choices} <= {1.0, 2.0, 3.0, 10.0}


def test_probes_of_another_model_are_refused(analysis: Analysis, source: Source, tmp_path: Path) -> None:
    other = Probed("0" * 64, "", "full", {"a": Probe("a", (1.0,), 1.0)})
    with pytest.raises(MintError, match="probes are of another model"):
        allocate(analysis, "0.4x", probed=other)
    with pytest.raises(MintError, match="analysis is of another model"):
        probe(source, replace(analysis, model="0" * 64), tmp_path / "a.probe")


def test_the_commands_probe_keep_and_use(source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, analysis = str(source.folder), tmp_path / "a.mint"
    arguments = ["probe", model, "--analysis", str(analysis), "--sequences", "2", "--length", "8", "--json"]
    assert run_command(arguments) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["probed_units"] == len(source.units)
    assert probe_path(analysis).exists()
    plan = ["allocate", str(analysis), "--budget", "0.4x", "--json"]
    assert run_command(plan) == 0
    assert json.loads(capsys.readouterr().out)["alphas"] == {PROBED: len(source.units)}
    assert run_command([*plan, "--ignore-probe"]) == 0
    assert json.loads(capsys.readouterr().out)["alphas"] == {PRIOR: len(source.units)}
    quantize = ["quantize", model, "--budget", "0.4x", "--output", str(tmp_path / "out"), "--probe", "--json"]
    assert run_command(quantize) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["verified"]
    assert record["seconds"]["probe"] > 0
