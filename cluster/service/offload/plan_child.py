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
from mint.core.journal import read_frames
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
    wanted = Recipe.from_dict(json.loads(recipe))
    headers = [(files, read_header(Path(files["analysis"]))) for files in json.loads(analyses)]
    # sensitivities are the model's, whatever the rounding
    probes = [files["probe"] for files, header in headers if files["probe"] and header["dtype"] == wanted.dtype]
    for files, header in headers:
        if (header["rounding"], header["dtype"]) == (wanted.rounding, wanted.dtype):
            probed = read_probes(Path(probes[0])) if probes else None
            return wanted.problem(read_analysis(files["analysis"]), probed)
    raise AnalysisMissingError(f"not analyzed with rounding {wanted.rounding} and dtype {wanted.dtype or 'of its own'}")


@lru_cache(_REMEMBERED)
def _curve(analyses: str, recipe: str, points: int) -> Curve:
    return curve(_problem(analyses, recipe), points=points)


def _asked(question: Mapping[str, Any]) -> tuple[str, str]:
    return json.dumps(question["analyses"]), json.dumps(question["recipe"])


def read_header(path: Path) -> Mapping[str, Any]:
    """The header of an analysis, without its measurements."""
    header, _ = next(read_frames(path.read_bytes(), len(MAGIC)), ({}, 0))
    if "rounding" not in header:
        raise MintError("the stored analysis is damaged; submit the model again")
    return dict(header)


def plan_record(question: Mapping[str, Any]) -> Record:
    """The plan of a budget: figures, every unit in its order, and what more memory would buy."""
    problem = _problem(*_asked(question))
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
    problem, line = _problem(*_asked(question)), _curve(*_asked(question), question["points"])
    return {
        "model": problem.analysis.model,
        "model_type": problem.analysis.model_type,
        "source_bytes": problem.analysis.source_nbytes,
        "weights": problem.weights,
        "points": [figures(point) for point in line.points],
        "knees": [point.budget_bytes for point in line.knees],
        "predicted_from": line.predicted_from,
        **_devices(problem),
    }


def _devices(problem: Problem) -> Record:
    if isinstance(problem.analysis.traced, str):
        return {"devices": [], "no_devices_because": problem.analysis.traced}
    rows = [
        {"name": placed.device.name, "budget_bytes": placed.budget_bytes, "verdict": placed.verdict}
        for placed in devices_on(problem, Room())
    ]
    return {"devices": rows, "no_devices_because": ""}


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
    headers = [read_header(Path(files["analysis"])) for files in question["analyses"]]
    return {
        "analyses": [
            {"rounding": header["rounding"], "dtype": header["dtype"], "probed": bool(files["probe"])}
            for header, files in zip(headers, question["analyses"], strict=True)
        ]
    }


VERBS = {"plan": plan_record, "curve": curve_record, "roles": roles_record, "headers": headers_record}


def answer(question: Mapping[str, Any]) -> Record:
    """The answer to one question, or the reason why there is none."""
    try:
        return {"answer": VERBS[question["verb"]](question)}
    except MintError as error:
        return {"error": str(error)}
    except AnalysisMissingError as error:
        return {"missing": str(error)}


def main() -> None:
    """Answer until standard input ends."""
    answers = open_answers()
    for question in questions():
        send(answers, answer(question))
