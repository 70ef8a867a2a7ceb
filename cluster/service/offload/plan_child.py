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

from mint.analysis.analysis import MAGIC, read_analysis
from mint.analysis.probes.probe_file import read_probes
from mint.core.errors import MintError
from mint.core.journal import read_header
from mint.plan.curve import Curve, curve
from mint.plan.device_fit import devices_on
from mint.plan.prediction import describe
from mint.plan.problem import Problem
from mint.plan.recipe import Budget, Recipe, Room
from mint.render.models import role_rows
from mint.render.plans import figures, next_record, unit_rows
from mint.run.child import open_answers, questions, send

_OF_ROLE = ("role", "units", "weights", "nbytes")
_REMEMBERED = 2  # problems, and curves
Record = dict[str, Any]


class AnalysisMissingError(Exception):
    """There is no such analysis."""


@lru_cache(_REMEMBERED)
def _problem(analyses: str, recipe: str) -> Problem:
    """The problem of the first of some analyses that has the recipe's rounding and dtype; both as JSON."""
    made = Recipe.from_dict(json.loads(recipe))
    headers = [(files, _header(files["analysis"])) for files in json.loads(analyses)]
    # sensitivities are the model's, whatever the rounding
    probes = [files["probe"] for files, header in headers if files["probe"] and header["dtype"] == made.dtype]
    for files, header in headers:
        if (header["rounding"], header["dtype"]) == (made.rounding, made.dtype):
            probed = read_probes(Path(probes[0])) if probes else None
            return made.problem(read_analysis(files["analysis"]), probed)
    raise AnalysisMissingError(f"not analyzed with rounding {made.rounding} and dtype {made.dtype or 'of its own'}")


@lru_cache(_REMEMBERED)
def _curve(analyses: str, recipe: str, points: int) -> Curve:
    return curve(_problem(analyses, recipe), points=points)


def _key(question: Mapping[str, Any]) -> tuple[str, str]:
    return json.dumps(question["analyses"]), json.dumps(question["recipe"])


def _header(analysis: str) -> Mapping[str, Any]:
    header = read_header(Path(analysis), MAGIC)
    if not header or "rounding" not in header:
        raise MintError("the stored analysis is damaged; submit the model again")
    return header


def plan_record(question: Mapping[str, Any]) -> Record:
    """The plan of a budget: figures, every unit in its order, and what more memory would buy."""
    problem = _problem(*_key(question))
    plan = problem.plan(Budget.from_dict(question["budget"]).nbytes(problem))
    return {
        "model": plan.model,
        "model_type": plan.model_type,
        **figures(plan),
        "bytes_per_token": round(plan.bytes_per_token),
        "predicted_from": describe(plan.predicted_kl, plan.evidence) if plan.predicted_kl else "",
        "digest": plan.digest,
        "smallest_bytes": problem.smallest_bytes,
        "largest_bytes": problem.largest_bytes,
        "units": unit_rows(plan),
        "next": next_record(problem, plan),
    }


def curve_record(question: Mapping[str, Any]) -> Record:
    """The curve of budget and loss, and where devices lie on it."""
    problem, line = _problem(*_key(question)), _curve(*_key(question), question["points"])
    analysis = problem.analysis
    untraced = analysis.traced if isinstance(analysis.traced, str) else None
    return {
        "model": analysis.model,
        "model_type": analysis.model_type,
        "source_bytes": analysis.source_nbytes,
        "weights": problem.weights,
        "points": [figures(point) for point in line.points],
        "knees": [point.budget_bytes for point in line.knees],
        "predicted_from": line.predicted_from,
        "devices": [
            {"name": fit.device.name, "budget_bytes": fit.budget_bytes, "verdict": fit.verdict}
            for fit in (devices_on(problem, Room()) if untraced is None else ())
        ],
        "no_devices_because": untraced or "",
    }


def roles_record(question: Mapping[str, Any]) -> Record:
    """The units of a model by role, from any of its analyses."""
    analysis = read_analysis(question["analyses"][0]["analysis"])
    return {
        "model_type": analysis.model_type,
        "layers": len({unit.layer for unit in analysis.units if unit.layer >= 0}),
        "roles": [{name: row[name] for name in _OF_ROLE} for row in role_rows(analysis.units)],
        **headers_record(question),
    }


def headers_record(question: Mapping[str, Any]) -> Record:
    """Rounding and dtype of each analysis, and whether it has probes."""
    headers = [(_header(files["analysis"]), bool(files["probe"])) for files in question["analyses"]]
    rows = [{"rounding": header["rounding"], "dtype": header["dtype"], "probed": probed} for header, probed in headers]
    return {"analyses": rows}


VERBS = {"plan": plan_record, "curve": curve_record, "roles": roles_record, "headers": headers_record}


def main() -> None:
    """Answer every question until standard input ends."""
    answers = open_answers()
    for question in questions():
        try:
            answer: Record = {"answer": VERBS[question["verb"]](question)}
        except MintError as error:
            answer = {"error": str(error)}
        except AnalysisMissingError as error:
            answer = {"missing": str(error)}
        send(answers, answer)
