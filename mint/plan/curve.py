"""The curve of loss over budget, and its knees.

Every point is an exact plan of its budget, so the loss falls monotonically and no plan lies below the curve.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

from mint.core.progress import OnProgress, Progress, ignore
from mint.plan.prediction import describe
from mint.plan.problem import Problem
from mint.quality.estimates import Estimate

POINTS = 100
_STRETCHES = 12  # of the curve, over which savings are compared
_KNEE = 0.5  # beyond a knee the next byte saves less than this share of what the last byte saved


@dataclass(frozen=True, slots=True)
class Point:
    """The best plan of one budget; `gap` bounds its distance to the optimum, 0 where the plan is proved optimal."""

    budget_bytes: int
    planned_bytes: int
    bits_per_weight: float
    loss: float
    gap: float
    predicted_kl: Estimate | None = None  # None for objectives that predict none


@dataclass(frozen=True, slots=True)
class Curve:
    """Points by rising budget, and the knees: beyond a knee the same saving takes at least twice the bytes."""

    points: tuple[Point, ...]
    knees: tuple[Point, ...]
    predicted_from: str = ""  # evidence of the smallest plan's predicted KL, in words

    def loss_at(self, budget_bytes: int) -> float:
        """The loss of any budget, interpolated linearly in its logarithm, constant beyond both ends."""
        index = bisect_left(self.points, budget_bytes, key=lambda point: point.budget_bytes)
        if index in (0, len(self.points)):
            return self.points[min(index, len(self.points) - 1)].loss
        left, right = self.points[index - 1 : index + 1]
        share = (budget_bytes - left.budget_bytes) / (right.budget_bytes - left.budget_bytes)
        if right.loss <= 0:
            return left.loss * (1 - share)
        return exp(log(left.loss) * (1 - share) + log(right.loss) * share)


def curve(problem: Problem, *, points: int = POINTS, on_progress: OnProgress = ignore) -> Curve:
    """The curve of a model at evenly spaced budgets, from the smallest plan to the smallest one of least loss."""
    low, high = problem.smallest_bytes, problem.largest_bytes
    steps = max(2, points) - 1
    budgets = sorted({low + (high - low) * step // steps for step in range(steps + 1)})
    plans: list[Point] = []
    predicted_from = ""
    for budget, solution in zip(budgets, problem.solutions(budgets), strict=True):
        planned, kl = problem.planned_bytes(solution), problem.predicted_kl(solution)
        if kl and not predicted_from:
            predicted_from = describe(kl, problem.evidence(solution))
        plans.append(Point(budget, planned, 8 * planned / problem.weights, solution.loss, solution.gap, kl))
        on_progress(Progress("curve", len(plans), len(budgets), ""))
    return Curve(tuple(plans), find_knees(plans), predicted_from)


def find_knees(points: Sequence[Point]) -> tuple[Point, ...]:
    """Points where the relative saving per byte falls below half of the stretch before, and falls most."""
    points = [point for point in points if point.loss > 0]
    stretch = max(1, len(points) // _STRETCHES)
    ratios = {
        index: _saving(points[index], points[index + stretch]) / _saving(points[index - stretch], points[index])
        for index in range(stretch, len(points) - stretch)
        if points[index].loss < points[index - stretch].loss
    }
    return tuple(
        points[index]
        for index, ratio in ratios.items()
        if ratio < _KNEE
        and ratio == min(ratios.get(near, ratio) for near in range(index - stretch, index + stretch + 1))
    )


def _saving(left: Point, right: Point) -> float:
    """Relative loss saved per byte."""
    return (log(left.loss) - log(right.loss)) / (right.budget_bytes - left.budget_bytes)
