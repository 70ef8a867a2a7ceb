"""Analysis and budget to Plan: the least predicted loss that fits."""

from collections.abc import Sequence

from mint.analysis.analysis import Analysis
from mint.analysis.probes.probe_file import Probed
from mint.core.records import require_record
from mint.plan.plan import Plan
from mint.plan.recipe import Budget, Recipe


def allocate(
    analysis: Analysis,
    budget: int | str | Budget,
    recipe: Recipe = Recipe(),  # noqa: B008, it is frozen
    *,
    probed: Probed | None = None,
) -> Plan:
    """The plan of least predicted loss whose weight files take at most `budget`, with its proved bound.

    `budget` is a `Budget`, a number of bytes, or text such as `18GB`, `4.5bpw`, `0.3x`, `min` or `max`. `probed`
    sensitivities go before those of the prior table. Raises `MintError` naming the smallest budget that works when
    there is no plan, and for rules that contradict each other.
    """
    require_record("read_analysis", analysis)
    (plan,) = allocate_all(analysis, [Budget.of(budget)], recipe, probed=probed)
    return plan


def allocate_all(
    analysis: Analysis, budgets: Sequence[Budget], recipe: Recipe, *, probed: Probed | None = None
) -> list[Plan]:
    """The plan of every budget, as `allocate` makes it; what they share is prepared once."""
    problem = recipe.problem(analysis, probed)
    return [problem.plan(budget.nbytes(problem)) for budget in budgets]
