"""Explanations of the units' formats, and differences between plans."""

from dataclasses import replace
from pathlib import Path

import pytest

from mint.analysis.analysis import Analysis
from mint.analysis.analyze import analyze
from mint.core.errors import MintError
from mint.formats.format import KEEP
from mint.model.source import open_source
from mint.plan.allocate import allocate
from mint.plan.explain import CHOSEN, EXCLUDED, FLOOR, OPEN, VETOED, WORSE, diff, explain
from mint.plan.plan import Plan
from mint.plan.recipe import Recipe
from mint.plan.size_range import possible_bytes
from tests.worlds.zoo import write_model


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    folder = tmp_path_factory.mktemp("moe")
    return analyze(open_source(write_model("qwen3_moe", folder / "model")), folder / "a.mint")


def _plan(analysis: Analysis, share: float, recipe: Recipe = Recipe()) -> Plan:  # noqa: B008
    smallest, largest = possible_bytes(analysis.units, analysis.parameters)
    return allocate(analysis, smallest + int((largest - smallest) * share), recipe)


def test_exactly_the_format_of_a_unit_has_the_verdict_chosen(analysis: Analysis) -> None:
    plan = _plan(analysis, 0.5)
    for explanation in explain(plan):
        verdicts = {option.format: option.verdict for option in explanation.options}
        assert verdicts[explanation.choice.format] == CHOSEN
        assert sum(verdict == CHOSEN for verdict in verdicts.values()) == 1
        assert all(verdicts[format] == VETOED for format in explanation.choice.vetoed if verdicts[format] != FLOOR)


def test_a_possible_option_with_more_bytes_has_less_loss(analysis: Analysis) -> None:
    for explanation in explain(_plan(analysis, 0.5)):
        possible = [option for option in explanation.options if option.verdict in (OPEN, CHOSEN)]
        losses = [option.loss for option in possible]
        assert losses == sorted(losses, reverse=True)
        assert all(option.loss >= min(losses) for option in explanation.options if option.verdict == WORSE)


def test_verdicts_name_the_rules_and_the_models_floor(analysis: Analysis) -> None:
    recipe = Recipe(veto_db=-9.0, formats=("4/32", "8/32"), max_bits=16)
    for explanation in explain(_plan(analysis, 0.6, recipe)):
        for option in explanation.options:
            if option.format.bits < explanation.choice.min_bits and option.format != KEEP:
                assert option.verdict == FLOOR
            elif str(option.format) not in ("4/32", "8/32", "keep"):
                assert option.verdict == EXCLUDED


def test_steps_lead_to_possible_formats_and_a_step_down_costs_at_least_the_price(analysis: Analysis) -> None:
    plan = _plan(analysis, 0.5)
    assert plan.price > 0
    for explanation in explain(plan):
        possible = {option.format for option in explanation.options if option.verdict == OPEN}
        for step in (explanation.larger, explanation.smaller):
            assert step is None or step.format in possible
        if explanation.larger:
            assert explanation.larger.nbytes > 0 < explanation.larger.loss
        if explanation.smaller:
            assert explanation.smaller.nbytes < 0 > explanation.smaller.loss


def test_a_pattern_chooses_the_units_and_one_without_match_is_refused(analysis: Analysis) -> None:
    plan = _plan(analysis, 0.5)
    explanations = explain(plan, "*.q_proj")
    assert {explanation.choice.role for explanation in explanations} == {"q"}
    with pytest.raises(MintError, match="matches no unit"):
        explain(plan, "no.such.unit")


def test_a_plan_does_not_differ_from_itself(analysis: Analysis) -> None:
    plan = _plan(analysis, 0.5)
    assert diff(plan, plan) == ()


def test_differences_add_up_to_the_difference_of_the_plans(analysis: Analysis) -> None:
    small, large = _plan(analysis, 0.4), _plan(analysis, 0.7)
    changes = diff(small, large)
    assert changes
    assert sum(change.loss for change in changes) == pytest.approx(large.loss - small.loss)
    # headers are aligned to 8 bytes
    assert abs(sum(change.nbytes for change in changes) - (large.planned_bytes - small.planned_bytes)) < 8
    losses = [abs(change.loss) for change in changes]
    assert losses == sorted(losses, reverse=True)


def test_plans_of_two_models_are_not_compared(analysis: Analysis, tmp_path: Path) -> None:
    plan = _plan(analysis, 0.5)
    with pytest.raises(MintError, match="plans are of two models"):
        diff(plan, replace(plan, model="0" * 64))
