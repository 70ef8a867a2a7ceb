"""Plans and curves of stored analyses, made in a child process of the service.

A line of JSON asks, a line of JSON answers: `{"answer": ...}`, or `{"error": ...}` for what the asker can mend. It ends
with its standard input, so it never outlives the service. An analysis of twenty thousand units and its problem take a
hundred megabytes and seconds of a processor: none of that belongs into the process that answers requests.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cluster.service.recipe_of_wish import ANALYSIS, budget_bytes_of, option, problem_of
from mint.analysis.analysis import MAGIC, read_analysis
from mint.analysis.probes.probe_file import read_probed
from mint.core.errors import MintError
from mint.core.journal import read_frames
from mint.core.sizes import format_size, parse_size, parse_tokens
from mint.plan.curve import Curve, curve
from mint.plan.device_fit import devices_on
from mint.plan.plan import Plan, offset_digits
from mint.plan.prediction import describe
from mint.plan.problem import Problem
from mint.quality.estimates import Estimate
from mint.run.child import open_answers, questions, send

_GB = 10**9
_KEPT = 2  # problems
Record = dict[str, Any]
T = TypeVar("T")


class AnalysisMissingError(Exception):
    """There is no such analysis."""


class Problems:
    """The problems that were asked for last, and their curves."""

    def __init__(self) -> None:
        self._problems: OrderedDict[str, Problem] = OrderedDict()
        self._curves: OrderedDict[str, Curve] = OrderedDict()

    def problem(self, asked: Mapping[str, Any]) -> Problem:
        """The problem of the first of the analyses that is of the rounding and dtype asked for."""
        return _remembered(self._problems, _key(asked, "analyses", "options"), partial(_problem, asked))

    def curve(self, asked: Mapping[str, Any]) -> Curve:
        """The curve of a problem."""
        return _remembered(
            self._curves,
            _key(asked, "analyses", "options", "points"),
            lambda: curve(self.problem(asked), points=asked["points"]),
        )


def _remembered(kept: OrderedDict[str, T], key: str, make: Callable[[], T]) -> T:
    if key not in kept:
        kept[key] = make()
        if len(kept) > _KEPT:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]


def _key(asked: Mapping[str, Any], *names: str) -> str:
    return json.dumps([asked[name] for name in names], sort_keys=True)


def _problem(asked: Mapping[str, Any]) -> Problem:
    options = asked["options"]
    wanted = [option(options, name) for name in ANALYSIS if name != "probe"]
    headers = [(found, read_header(Path(found["analysis"]))) for found in asked["analyses"]]
    # sensitivities are the model's, whatever the rounding
    probes = [found["probe"] for found, header in headers if found["probe"] and header["dtype"] == wanted[1]]
    for found, header in headers:
        if [header["rounding"], header["dtype"]] == wanted:
            probed = read_probed(Path(probes[0])) if probes else None
            return problem_of(options, read_analysis(found["analysis"]), probed)
    raise AnalysisMissingError(f"not analyzed with rounding {wanted[0]} and dtype {wanted[1] or 'of its own'}")


def read_header(path: Path) -> Mapping[str, Any]:
    """What an analysis says of itself, without its measurements."""
    header, _ = next(read_frames(path.read_bytes(), len(MAGIC)), ({}, 0))
    if "rounding" not in header:
        raise MintError("the stored analysis is damaged; submit the model again")
    found: Mapping[str, Any] = header
    return found


def plan_record(problems: Problems, asked: Mapping[str, Any]) -> Record:
    """The plan of a budget: figures, every unit in its order, and what more memory would buy."""
    problem = problems.problem(asked)
    plan = problem.plan(budget_bytes_of(asked["budget"], asked["options"], problem))
    return {
        "model": plan.model,
        "model_type": plan.model_type,
        "budget": asked["budget"],
        **_figures(plan),
        "bytes_per_token": round(plan.bytes_per_token),
        "predicted_from": describe(plan.predicted_kl, plan.evidence) if plan.predicted_kl else "",
        "digest": plan.digest,
        "smallest_bytes": problem.smallest_bytes,
        "largest_bytes": problem.largest_bytes,
        "units": _units(plan),
        "next": _next(problem, plan),
    }


def _figures(plan: Plan) -> Record:
    return {
        "budget_bytes": plan.budget_bytes,
        "planned_bytes": plan.planned_bytes,
        "bits_per_weight": plan.bits_per_weight,
        "loss": plan.loss,
        "gap": plan.gap,
        "predicted_kl": _estimate(plan.predicted_kl),
    }


def _estimate(estimate: Estimate | None) -> Record | None:
    return asdict(estimate) if estimate else None


def _units(plan: Plan) -> list[Record]:
    digits = offset_digits(plan)
    return [
        {
            "path": choice.path,
            "role": choice.role,
            "layer": choice.layer,
            "format": str(choice.format),
            "bits": round(8 * (nbytes := choice.nbytes(digits)) / max(choice.weights, 1), 3),
            "nbytes": nbytes,
            "reason": choice.reason,
        }
        for choice in plan.choices
    ]


def _next(problem: Problem, plan: Plan) -> Record | None:
    """What the next GB buys; of a small model, the next tenth of what there is between its smallest and largest."""
    step = min(_GB, max(1, (problem.largest_bytes - problem.smallest_bytes) // 10))
    if plan.planned_bytes >= problem.largest_bytes or plan.loss <= 0:
        return None
    more = problem.plan(plan.budget_bytes + step)
    return {
        "step_bytes": step,
        "says": f"{format_size(step)} more: {1 - more.loss / plan.loss:.1%} less loss",
        **_figures(more),
    }


def curve_record(problems: Problems, asked: Mapping[str, Any]) -> Record:
    """The curve of budget and loss, and where devices lie on it."""
    problem, found = problems.problem(asked), problems.curve(asked)
    points = [
        {
            "budget_bytes": point.budget_bytes,
            "planned_bytes": point.planned_bytes,
            "bits_per_weight": point.bits_per_weight,
            "loss": point.loss,
            "gap": point.gap,
            "predicted_kl": _estimate(point.predicted_kl),
        }
        for point in found.points
    ]
    return {
        "model": problem.analysis.model,
        "model_type": problem.analysis.model_type,
        "source_bytes": problem.analysis.source_nbytes,
        "weights": problem.weights,
        "points": points,
        "knees": [point.budget_bytes for point in found.knees],
        "predicted_from": found.predicted_from,
        **_devices(problem, asked["options"]),
    }


def _devices(problem: Problem, options: Mapping[str, Any]) -> Record:
    if isinstance(problem.analysis.traced, str):
        return {"devices": [], "no_devices_because": problem.analysis.traced}
    placed = devices_on(
        problem, tokens=parse_tokens(option(options, "context")), reserve_bytes=_reserve(option(options, "reserve"))
    )
    rows = [{"name": each.device.name, "budget_bytes": each.budget_bytes, "verdict": each.verdict} for each in placed]
    return {"devices": rows, "no_devices_because": ""}


def _reserve(text: str) -> int:
    return 0 if text.strip() == "0" else parse_size(text)


def roles_record(problems: Problems, asked: Mapping[str, Any]) -> Record:
    """What a model is made of, by role, from any of its analyses."""
    analysis = read_analysis(asked["analyses"][0]["analysis"])
    roles: dict[str, Record] = {}
    for unit in analysis.units:
        row = roles.setdefault(unit.role, {"role": unit.role, "units": 0, "weights": 0, "nbytes": 0})
        row["units"] += 1
        row["weights"] += unit.size
        row["nbytes"] += unit.nbytes
    return {
        "model_type": analysis.model_type,
        "layers": len({unit.layer for unit in analysis.units if unit.layer >= 0}),
        "roles": sorted(roles.values(), key=lambda row: -int(row["weights"])),
        **headers_record(problems, asked),
    }


def headers_record(problems: Problems, asked: Mapping[str, Any]) -> Record:
    """What analyses are of."""
    headers = [read_header(Path(found["analysis"])) for found in asked["analyses"]]
    return {
        "analyses": [
            {"rounding": header["rounding"], "dtype": header["dtype"], "probed": bool(found["probe"])}
            for header, found in zip(headers, asked["analyses"], strict=True)
        ]
    }


VERBS = {"plan": plan_record, "curve": curve_record, "roles": roles_record, "headers": headers_record}


def answer(problems: Problems, asked: Mapping[str, Any]) -> Record:
    """The answer to one question, or what is wrong with it."""
    try:
        return {"answer": VERBS[asked["verb"]](problems, asked)}
    except MintError as error:
        return {"error": str(error)}
    except AnalysisMissingError as error:
        return {"missing": str(error)}


def main() -> None:
    """Answer until standard input ends."""
    answers, problems = open_answers(), Problems()
    for question in questions():
        send(answers, answer(problems, question))
