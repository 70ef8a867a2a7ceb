"""Plans and curves of stored analyses, made in a child process of the service.

Each question and each answer is a line of JSON: `{"answer": ...}`, or `{"error": ...}` for an error that the caller can
fix. The process ends with its standard input, so it never outlives the service. An analysis of twenty thousand units
and its problem take a hundred megabytes and seconds of a processor: too much for the process that answers requests.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mint.analysis.analysis import read_analysis
from mint.analysis.probes.probe_file import read_probes
from mint.core.errors import MintError
from mint.core.records import pick
from mint.plan.curve import Curve, curve
from mint.plan.device_fit import devices_on
from mint.plan.plan import converted_plans
from mint.plan.prediction import describe
from mint.plan.problem import Problem
from mint.plan.recipe import Budget, Recipe, Room
from mint.render.models import role_rows
from mint.render.plans import figures, next_record, unit_rows
from mint.render.summary import plan_summary
from mint.run.child import open_answers, questions, send

_OF_ROLE = ("role", "units", "weights", "nbytes")
_REMEMBERED = 2  # problems, and curves
Record = dict[str, Any]


@lru_cache(_REMEMBERED)
def _problem(analysis: str, probe: str, recipe: str) -> Problem:
    """The problem of the analysis and the probes, if any, at these paths; the recipe is JSON."""
    probed = read_probes(Path(probe)) if probe else None
    return Recipe.from_dict(json.loads(recipe)).problem(read_analysis(analysis), probed)


@lru_cache(_REMEMBERED)
def _curve(points: int, *key: str) -> Curve:
    return curve(_problem(*key), points=points)


def _key(question: Mapping[str, Any]) -> tuple[str, str, str]:
    return question["analysis"], question["probe"], json.dumps(question["recipe"])


def plan_record(question: Mapping[str, Any]) -> Record:
    """The plan of a budget: figures, every unit in its order, and what more memory would buy."""
    problem = _problem(*_key(question))
    plan = problem.plan(Budget.from_dict(question["budget"]).nbytes(problem))
    return {
        **pick(plan, "model model_type digest"),
        **figures(plan),
        "bytes_per_token": round(plan.bytes_per_token),
        "predicted_from": describe(plan.predicted_kl, plan.evidence) if plan.predicted_kl else "",
        **pick(problem, "smallest_bytes largest_bytes"),
        "in_words": {line.label: line.text for line in plan_summary(plan, None)[1:]},  # without that of its file
        "units": unit_rows(plan),
        "next": next_record(problem, plan),
    }


def curve_record(question: Mapping[str, Any]) -> Record:
    """The curve of budget and loss, and where devices lie on it."""
    problem, line = _problem(*_key(question)), _curve(question["points"], *_key(question))
    analysis = problem.analysis
    untraced = analysis.traced if isinstance(analysis.traced, str) else ""
    return {
        **pick(analysis, "model model_type"),
        "source_bytes": analysis.source_nbytes,
        "weights": problem.weights,
        "points": [figures(point) for point in line.points],
        "knees": [point.budget_bytes for point in line.knees],
        "predicted_from": line.predicted_from,
        "uniform": [
            {"format": name, **figures(plain)}
            for name, plain in converted_plans(problem.plan(problem.largest_bytes)).items()
        ],
        "devices": [
            {"name": fit.device.name, **pick(fit, "budget_bytes verdict")}
            for fit in (() if untraced else devices_on(problem, Room()))
        ],
        "no_devices_because": untraced,
    }


def require_record(question: Mapping[str, Any]) -> Record:
    """Nothing, if every budget has a plan; raises `MintError` for the first that has none."""
    problem = _problem(*_key(question))
    for budget in question["budgets"]:
        problem.require(Budget.from_dict(budget).nbytes(problem))
    return {}


def roles_record(question: Mapping[str, Any]) -> Record:
    """The units of a model by role, from any of its analyses."""
    analysis = read_analysis(question["analysis"])
    return {
        "model_type": analysis.model_type,
        "layers": len({unit.layer for unit in analysis.units if unit.layer >= 0}),
        "roles": [{name: row[name] for name in _OF_ROLE} for row in role_rows(analysis.units)],
    }


VERBS = {"plan": plan_record, "curve": curve_record, "require": require_record, "roles": roles_record}


def main() -> None:
    """Answer every question until standard input ends."""
    answers = open_answers()
    for question in questions():
        try:
            answer: Record = {"answer": VERBS[question["verb"]](question)}
        except MintError as error:
            answer = {"error": str(error)}
        send(answers, answer)
