"""Analysis and budget to Plan: the least predicted loss that fits."""

from mint.analysis.analysis import Analysis
from mint.analysis.probes.probe_file import Probed
from mint.core.sizes import Budget, parse_budget
from mint.formats.layout import MAX_SHARD_BYTES
from mint.plan.objectives import objective as objective_named
from mint.plan.plan import Plan
from mint.plan.problem import Problem
from mint.plan.rules import Rules


def allocate(
    analysis: Analysis,
    budget: int | str | Budget,
    *,
    objective: str = "output",
    rules: Rules = Rules(),  # noqa: B008, it is frozen
    probed: Probed | None = None,
    prefer_speed: float = 0.0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Plan:
    """The plan of least predicted loss whose weight files take at most `budget`, with its proved bound.

    `budget` is a number of bytes, or text such as `18GB`, `4.5bpw`, `0.3x`, `min` or `max`. `probed`
    sensitivities go before those of the prior table. Raises `MintError` naming
    the smallest budget that works when there is no plan, and for rules that contradict each other.
    """
    problem = Problem(
        analysis,
        objective_named(objective),
        rules,
        probed=probed,
        prefer_speed=prefer_speed,
        max_shard_bytes=max_shard_bytes,
    )
    return problem.plan(budget_bytes(budget, problem))


def budget_bytes(budget: int | str | Budget, problem: Problem) -> int:
    """The bytes that a budget means for a model and rules."""
    if isinstance(budget, int):
        return budget
    if isinstance(budget, str):
        budget = parse_budget(budget)
    if budget.unit == "min":
        return problem.smallest_bytes
    if budget.unit == "max":
        return problem.largest_bytes
    if budget.unit == "bpw":
        return int(budget.amount * problem.weights / 8)
    if budget.unit == "x":
        return int(budget.amount * problem.analysis.source_nbytes)
    return int(budget.amount)
