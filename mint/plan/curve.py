"""The whole curve of budget and loss of a model: where bytes buy much, and where they stop to.

Every point is an exact plan of its budget, so the curve falls monotonically and nothing lies below it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log

from mint.core.progress import OnProgress, Progress, ignore
from mint.plan.prediction import describe
from mint.plan.problem import Problem
from mint.quality.estimates import Estimate

POINTS = 100
_STRETCHES = 12  # of the curve, over which savings are compared
_HALVED = 0.5  # a knee: from here on the next byte saves less than half of what the last one saved


@dataclass(frozen=True, slots=True)
class Point:
    """The best plan of one budget; `gap` is how far at most it is from the best, 0 where that is proved."""

    budget_bytes: int
    planned_bytes: int
    bits_per_weight: float
    loss: float
    gap: float
    predicted_kl: Estimate | None = None  # None for objectives that predict none


@dataclass(frozen=True, slots=True)
class Curve:
    """Points by rising budget, and the knees among them: what is bought beyond one costs at least twice as much."""

    points: tuple[Point, ...]
    knees: tuple[Point, ...]
    predicted_from: str = ""  # what the predicted KL of the smallest plan rests on, in words

    def loss_at(self, budget_bytes: int) -> float:
        """The loss of a budget between the points, along a straight line of its logarithm; flat beyond the ends."""
        points = self.points
        if budget_bytes <= points[0].budget_bytes:
            return points[0].loss
        for left, right in pairwise(points):
            if budget_bytes <= right.budget_bytes:
                share = (budget_bytes - left.budget_bytes) / (right.budget_bytes - left.budget_bytes)
                if right.loss <= 0:
                    return left.loss * (1 - share)
                return exp(log(left.loss) * (1 - share) + log(right.loss) * share)
        return points[-1].loss


def curve(problem: Problem, *, points: int = POINTS, on_progress: OnProgress = ignore) -> Curve:
    """The curve of a model from its smallest plan to the smallest one with the least loss, at evenly spaced budgets."""
    first, last = problem.smallest_bytes, problem.largest_bytes
    count = max(2, points)
    budgets = sorted({first + (last - first) * index // (count - 1) for index in range(count)})
    found: list[Point] = []
    said = ""
    for budget, solution in zip(budgets, problem.solutions(budgets), strict=True):
        planned = problem.planned_bytes(solution)
        kl, evidence = problem.predicted_kl(solution), problem.evidence(solution)
        said = said or (describe(kl, evidence) if kl else "")
        found.append(Point(budget, planned, 8 * planned / problem.weights, solution.loss, solution.gap, kl))
        on_progress(Progress("curve", len(found), len(budgets), ""))
    return Curve(tuple(found), find_knees(found), said)


def find_knees(points: Sequence[Point]) -> tuple[Point, ...]:
    """Where the relative saving per byte, over a stretch of the curve, is less than half of that before, and least."""
    points = [point for point in points if point.loss > 0]
    stretch = max(1, len(points) // _STRETCHES)
    turns = {
        index: _fall(points[index], points[index + stretch]) / _fall(points[index - stretch], points[index])
        for index in range(stretch, len(points) - stretch)
        if points[index].loss < points[index - stretch].loss
    }
    return tuple(
        points[index]
        for index, turn in turns.items()
        if turn < _HALVED and turn == min(turns.get(near, turn) for near in range(index - stretch, index + stretch + 1))
    )


def _fall(left: Point, right: Point) -> float:
    """Relative loss saved per byte between two points."""
    return (log(left.loss) - log(right.loss)) / (right.budget_bytes - left.budget_bytes)
