"""Predicted KL: its value, its interval, and the commands that show it."""

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from math import exp, fsum, gamma, hypot, log, pi, sqrt
from pathlib import Path
from statistics import correlation, fmean, stdev
from typing import Any

import numpy as np
import pytest

from mint.analysis.analysis import Analysis
from mint.analysis.analyze import analyze
from mint.analysis.probes.probe_file import Probe, Probed, probe_path, write_probed
from mint.cli.main import run_command
from mint.core.errors import MintError
from mint.model.source import open_source
from mint.plan.allocate import allocate
from mint.plan.objectives import OBJECTIVES
from mint.plan.plan import read_plan, write_plan
from mint.plan.prediction import (
    NO_PROBES,
    TRIALS,
    VALID_KL,
    Evidence,
    Sampling,
    describe,
    form_error,
    predicted_kl,
    student_percentile,
)
from mint.plan.problem import Problem
from mint.plan.recipe import Recipe
from tools.bench.prediction import Row, budgets, rank_correlation, summary

PATHS = ("a", "b", "c", "d")


def _probed(model: str, kls: Mapping[str, tuple[float, ...]]) -> Probed:
    return Probed(model, "", "full", {path: Probe(path, values, 0.01) for path, values in kls.items()})


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("analysis") / "a.mint"


@pytest.fixture(scope="module")
def analysis(llama: Path, path: Path) -> Analysis:
    return analyze(open_source(llama), path)


@pytest.fixture(scope="module")
def probed(analysis: Analysis) -> Probed:
    generator = np.random.default_rng(0)
    return _probed(
        analysis.model, {unit.path: tuple(generator.uniform(0.1, 0.3, 6).tolist()) for unit in analysis.units}
    )


@pytest.mark.parametrize("freedom", [1, 2, 5, 15, 16, 40])
def test_percentiles_of_t_enclose_95_percent(freedom: int) -> None:
    """Against the density of Student's t, integrated."""
    end = student_percentile(freedom)
    points = np.linspace(-end, end, 20_001)
    scale = gamma((freedom + 1) / 2) / sqrt(freedom * pi) / gamma(freedom / 2)
    density = scale * (1 + points**2 / freedom) ** (-(freedom + 1) / 2)
    assert float(np.trapezoid(density, points)) == pytest.approx(0.95, abs=5e-4)


def test_the_spread_is_the_standard_error_of_the_sum_over_units_of_each_sequence() -> None:
    kls = {"a": (1.0, 2.0, 3.0), "b": (0.2, 0.2, 0.5), "d": (0.1, 0.4, 0.1)}
    losses = np.array([0.5, 0.2, 0.3, 0.1])  # c has no probe
    evidence = Sampling(PATHS, _probed("m", kls)).evidence(losses)
    shares = {"a": 0.5, "b": 0.2, "d": 0.1}
    sums = [fsum(shares[path] * kls[path][s] / fmean(kls[path]) for path in kls) for s in range(3)]
    assert evidence.probed == pytest.approx(0.8 / 1.1)
    assert evidence.sequences == 3
    assert evidence.spread == pytest.approx(stdev(sums) / sqrt(3) / fmean(sums))


def test_units_with_opposite_variation_have_no_spread() -> None:
    against = Sampling(("a", "b"), _probed("m", {"a": (1.0, 3.0), "b": (3.0, 1.0)}))
    together = Sampling(("a", "b"), _probed("m", {"a": (1.0, 3.0), "b": (1.0, 3.0)}))
    assert against.evidence(np.array([0.1, 0.1])).spread == pytest.approx(0, abs=1e-12)
    assert together.evidence(np.array([0.1, 0.1])).spread == pytest.approx(0.5)


def test_the_interval_widens_with_spread_and_with_unprobed_units() -> None:
    sure = Evidence(1.0, 8, 0.0)
    assert sure.factor == pytest.approx(exp(form_error("probed")))
    spreads = [replace(sure, spread=spread).factor for spread in (0.0, 0.1, 0.2)]
    shares = [replace(sure, probed=share).factor for share in (1.0, 0.5, 0.0)]
    for factors in (spreads, shares):
        assert factors == sorted(factors)
        assert factors[0] < factors[-1]
    assert replace(sure, spread=0.1).factor == pytest.approx(exp(hypot(form_error("probed"), 2.365 * 0.1)))
    # one sequence says nothing of others
    assert Evidence(1.0, 1, 0.0).factor == NO_PROBES.factor == shares[-1] == pytest.approx(exp(form_error("prior")))
    kl = predicted_kl(0.3, sure)
    assert kl.high / kl.value == pytest.approx(kl.value / kl.low) == pytest.approx(sure.factor)


def test_the_form_error_is_a_t_interval_over_the_models_of_the_trials() -> None:
    """The prior was fitted to one of the models, so only the other one shows its error on a new model."""
    assert list(TRIALS["prior"]) == ["diag"]
    for alphas in ("prior", "probed"):
        means = [
            np.mean([log(measured / predicted) ** 2 for predicted, measured in trials if predicted <= VALID_KL])
            for trials in TRIALS[alphas].values()
        ]
        percentile = {1: 12.706, 2: 4.303}[len(means)]
        assert form_error(alphas) == pytest.approx(percentile * sqrt(np.mean(means)))


def test_a_compensated_plan_is_predicted_the_relief_of_earlier_compensated_plans() -> None:
    plain = Evidence(1.0, 8, 0.05)
    compensated = replace(plain, compensated=True)
    pairs = [pair for trials in TRIALS["compensated"].values() for pair in trials]
    shares = [measured / predicted for predicted, measured in pairs]
    assert min(shares) < compensated.relief < max(shares) < 1
    assert plain.relief == 1
    assert predicted_kl(0.3, compensated).value == pytest.approx(0.3 * compensated.relief)
    assert compensated.factor == pytest.approx(exp(hypot(log(plain.factor), form_error("compensated"))))
    assert "for compensation" in describe(predicted_kl(0.3, compensated), compensated)


def test_the_rounding_of_the_analysis_decides_if_a_plan_is_compensated(analysis: Analysis, probed: Probed) -> None:
    plan, compensated = (
        Problem(replace(analysis, rounding=rounding), probed=probed).plan(10**9)
        for rounding in ("search", "compensate")
    )
    assert not plan.evidence.compensated
    assert compensated.evidence == replace(plan.evidence, compensated=True)


@pytest.mark.parametrize("prefer_speed", [0.0, 1.0])
def test_a_plan_and_a_curve_predict_the_same_kl(analysis: Analysis, probed: Probed, prefer_speed: float) -> None:
    problem = Problem(analysis, probed=probed, prefer_speed=prefer_speed)
    for share in (0.3, 0.5, 0.9):
        budget = int(share * problem.largest_bytes + (1 - share) * problem.smallest_bytes)
        plan = problem.plan(budget)
        assert plan.predicted_kl
        assert plan.predicted_kl.value == plan.loss
        assert plan.evidence.probed == pytest.approx(1)
        assert plan.evidence.sequences == 6
        (solution,) = problem.solutions([budget])
        along = problem.predicted_kl(solution)
        assert along
        assert along.value == pytest.approx(plan.loss)
        assert along.high == pytest.approx(plan.predicted_kl.high)


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - {"output"}))
def test_other_objectives_predict_no_kl(
    name: str, analysis: Analysis, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = allocate(analysis, "0.5x", Recipe(objective=name))
    assert plan.predicted_kl is None
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    record = _run(capsys, "curve", str(path), "--objective", name, "--points", "5")
    assert not [key for key in (*record, *record["points"][0]) if "predicted" in key]


def test_a_written_plan_keeps_the_evidence_of_its_prediction(
    analysis: Analysis, probed: Probed, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    plan = allocate(analysis, "0.5x", probed=probed)
    write_plan(plan, file)
    assert read_plan(file).predicted_kl == plan.predicted_kl
    record = json.loads(file.read_text())
    assert plan.predicted_kl
    assert record["predicted_kl"]["high"] == plan.predicted_kl.high
    file.write_text(json.dumps(record | {"schema": 4}))
    with pytest.raises(MintError, match=r"schema 4, written by another version of mint; needed: one of schema 7"):
        read_plan(file)


def test_the_description_names_the_evidence_and_its_limit() -> None:
    evidence = Evidence(0.75, 8, 0.12)
    assert "75% from probes on 8 sequences, standard error 12%" in describe(predicted_kl(0.3, evidence), evidence)
    assert "beyond" not in describe(predicted_kl(VALID_KL, evidence), evidence)
    assert "which plan is closer" in describe(predicted_kl(1.01 * VALID_KL, NO_PROBES), NO_PROBES)
    assert "default sensitivities" in describe(predicted_kl(0.3, NO_PROBES), NO_PROBES)


def test_allocate_and_curve_show_the_interval(
    path: Path, probed: Probed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = tmp_path / "a.mint"
    beside.write_bytes(path.read_bytes())
    prior = _run(capsys, "allocate", str(beside), "--budget", "0.5x")
    header = {"schema": 3, "model": probed.model, "tokens": "", "base": "full", "units": list(probed.probes)}
    write_probed(probe_path(beside), header, probed.probes)
    allocated = _run(capsys, "allocate", str(beside), "--budget", "0.5x")
    for record in (prior, allocated):
        assert record["predicted_low"] < record["predicted_kl"] == record["loss"] < record["predicted_high"]
    assert allocated["predicted_high"] / allocated["predicted_kl"] < prior["predicted_high"] / prior["predicted_kl"]
    assert "6 sequences" in allocated["predicted_from"]
    numbers = tmp_path / "curve.csv"
    record = _run(capsys, "curve", str(beside), "--points", "7", "--csv", str(numbers))
    with numbers.open() as file:
        rows = list(csv.DictReader(file))
    for row, point in zip(rows, record["points"], strict=True):
        assert float(row["predicted_low"]) == point["predicted_low"] <= point["predicted_high"]
        assert point["predicted_kl"] == pytest.approx(point["loss"])
    assert "6 sequences" in record["predicted_from"]
    picture = tmp_path / "curve.svg"
    _run(capsys, "curve", str(beside), "--points", "7", "--plot", str(picture))
    assert "95 % interval" in picture.read_text()


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run_command([*arguments, "--json"]) == 0
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    return record


def test_the_benchmark_computes_rank_correlation_and_interval_coverage() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == 1
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    generator = np.random.default_rng(1)
    left, right = generator.random(9), generator.random(9)
    ranks = [np.argsort(np.argsort(values)).tolist() for values in (left, right)]
    assert rank_correlation(left.tolist(), right.tolist()) == pytest.approx(correlation(*ranks))
    figures = summary([Row(1, 1.0, 0.5, 2.0, 1.5, 1.4, 1.6), Row(2, 0.1, 0.05, 0.2, 0.3, 0.2, 0.4)])
    assert figures["inside"] == 1
    assert figures["most_factor"] == pytest.approx(3)
    between = budgets(100, 1000, 10)
    assert len(between) == 10
    assert 100 < between[0] < between[-1] < 1000
