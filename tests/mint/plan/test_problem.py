"""Objectives, budgets as people think, and the wish for speed."""

from pathlib import Path

import pytest

from mint.analysis.analysis import Analysis
from mint.analysis.analyze import analyze
from mint.core.errors import MintError
from mint.core.sizes import parse_budget, parse_tokens
from mint.formats.format import KEEP
from mint.model.source import open_source
from mint.plan.allocate import allocate
from mint.plan.curve import Point, curve, find_knees
from mint.plan.objectives import OBJECTIVES, objective
from mint.plan.plan import read_plan, write_plan
from mint.plan.problem import Problem, active_shares
from mint.plan.recipe import Budget, Recipe
from mint.plan.rules import Rules
from tests.worlds.zoo import write_model

ANY = Rules(veto_db=-100.0)


@pytest.fixture(scope="module")
def analysis(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return analyze(open_source(llama), tmp_path_factory.mktemp("analysis") / "a.mint")


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    folder = tmp_path_factory.mktemp("moe")
    return analyze(open_source(write_model("qwen3_moe", folder / "model")), folder / "a.mint")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_minimized_by_its_own_plan(analysis: Analysis, name: str) -> None:
    problem = Problem(analysis, objective(name), ANY)
    budget = (problem.smallest_bytes + problem.largest_bytes) // 2
    ours = problem.plan(budget)
    alphas = OBJECTIVES[name].alphas(analysis.units)
    for other in OBJECTIVES:
        theirs = Problem(analysis, objective(other), Rules(-100.0, formats=OBJECTIVES[name].formats)).plan(budget)
        judged = sum(OBJECTIVES[name].loss(alphas[choice.path], choice.error) for choice in theirs.choices)
        assert ours.loss <= judged * (1 + 1e-9)


def test_the_published_objective_adds_relative_errors_and_uses_its_own_formats(analysis: Analysis) -> None:
    plan = allocate(analysis, "4.5bpw", Recipe(objective="mint", veto_db=ANY.veto_db))
    assert {choice.format for choice in plan.choices} <= {*OBJECTIVES["mint"].formats, KEEP}
    assert plan.loss == pytest.approx(sum(choice.alpha * choice.error**0.5 for choice in plan.choices))
    assert {choice.alpha for choice in plan.choices if choice.role == "embedding"} == {10.0}
    assert {choice.alpha for choice in plan.choices if choice.layer == 0} == {3.0}


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(MintError, match="not an objective; needed one of: output, mint, energy"):
        objective("best")


def test_budgets_mean_what_they_say(analysis: Analysis) -> None:
    problem = Problem(analysis, rules=ANY)
    assert Budget.of("1MB").nbytes(problem) == 10**6
    assert Budget.of("0.5x").nbytes(problem) == analysis.source_nbytes // 2
    assert Budget.of("8bpw").nbytes(problem) == problem.weights
    assert Budget.of(4711).nbytes(problem) == 4711
    smallest, largest = (problem.plan(Budget.of(text).nbytes(problem)) for text in ("min", "max"))
    assert smallest.planned_bytes <= problem.smallest_bytes
    with pytest.raises(MintError, match="too small"):
        problem.plan(problem.smallest_bytes - 1)
    assert largest.loss == 0
    assert problem.plan(problem.largest_bytes - 1).loss > 0


@pytest.mark.parametrize("text", ["0bpw", "bpw", "4.5 bits", "x", "0x", "10", "-1GB", "GB"])
def test_an_invalid_budget_is_refused(text: str) -> None:
    with pytest.raises(MintError):
        parse_budget(text)


def test_contexts_count_in_powers_of_1024() -> None:
    assert [parse_tokens(text) for text in ("8192", "32k", "1M", " 4K ")] == [8192, 32768, 1 << 20, 4096]
    for text in ("0", "32kB", "1.5k", "k", "-1"):
        with pytest.raises(MintError, match="not a context"):
            parse_tokens(text)


def test_a_preference_for_speed_buys_bytes_per_token_with_loss(experts: Analysis) -> None:
    budget = Problem(experts, rules=ANY).largest_bytes
    recipes = [Recipe(veto_db=ANY.veto_db, prefer_speed=wish) for wish in (0.0, 0.3, 3.0, 30.0)]
    plans = [allocate(experts, budget, recipe) for recipe in recipes]
    assert [plan.loss for plan in plans] == sorted(plan.loss for plan in plans)
    read = [plan.bytes_per_token for plan in plans]
    assert read == sorted(read, reverse=True)
    assert read[-1] < read[0]
    for plan in plans:
        assert plan.bound <= (plan.loss + plan.charge) * (1 + 1e-9)
        assert plan.gap < 1e-6


def test_a_token_reads_its_experts_and_one_row_of_the_embedding(experts: Analysis) -> None:
    shares = active_shares(experts)
    stacks = [unit for unit in experts.units if unit.slices > 1]
    assert stacks
    assert all(0 < shares[unit.path] < 1 for unit in stacks)
    plan = allocate(experts, "max", Recipe(veto_db=ANY.veto_db))
    expected = float(sum(parameter.nbytes for parameter in experts.parameters))
    expected += sum(unit.nbytes * shares.get(unit.path, 1.0) for unit in experts.units)
    assert plan.bytes_per_token == pytest.approx(expected)


def test_a_plan_with_rules_and_a_preference_for_speed_reads_back(experts: Analysis, tmp_path: Path) -> None:
    rules = {"veto_db": 7.0, "min_bits": 3, "max_bits": 16, "lock": ("*.q_proj=keep",)}
    plan = allocate(experts, "0.5x", Recipe.from_dict({"objective": "energy", "prefer_speed": 0.5, **rules}))
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan


def test_the_curve_falls_and_its_plans_keep_their_budgets(analysis: Analysis) -> None:
    curve_30 = curve(Problem(analysis, rules=ANY), points=30)
    assert len(curve_30.points) == 30
    losses = [point.loss for point in curve_30.points]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == 0
    for point in curve_30.points:
        assert point.planned_bytes <= point.budget_bytes
        assert point.gap < 1e-6
    assert set(curve_30.knees) <= set(curve_30.points)


def test_a_curve_is_interpolated_between_its_points(analysis: Analysis) -> None:
    curve_10 = curve(Problem(analysis, rules=ANY), points=10)
    for left, right in zip(curve_10.points, curve_10.points[1:], strict=False):
        assert curve_10.loss_at(left.budget_bytes) == pytest.approx(left.loss)
        assert right.loss <= curve_10.loss_at((left.budget_bytes + right.budget_bytes) // 2) <= left.loss
    assert curve_10.loss_at(1) == curve_10.points[0].loss
    assert curve_10.loss_at(10**12) == 0


def test_a_knee_is_where_the_saving_per_byte_halves() -> None:
    """A made curve: the loss falls tenfold per 10 bytes up to byte 100, and by a third of that from there on."""
    points = [
        Point(budget, budget, 4.0, 10 ** (-budget / 10) if budget <= 100 else 10 ** (-10 - (budget - 100) / 30), 0.0)
        for budget in range(0, 201, 5)
    ]
    assert [point.budget_bytes for point in find_knees(points)] == [100]
    assert find_knees(points[:15]) == ()
    assert find_knees([]) == ()
